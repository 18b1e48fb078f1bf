/** Runs the decoder's ONNX file off the page's main thread; owns its session and the embedding. */

import * as ort from "onnxruntime-web/wasm";
import loaderUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { floatsToHalves, halvesToFloats } from "./half";
import type { ModelPrompt } from "./prompt";

export type WorkerRequest = { id: number } & (
  | { kind: "open"; imageId: string; checkpoint: string; embeddingShape: [number, number, number] }
  | { kind: "decode"; imageId: string; prompt: ModelPrompt; side: number }
);

export type WorkerReply =
  | { id: number; lowResMasks?: Float32Array; predictedIou?: number[] }
  | { id: number; error: string };

const absolute = (url: string): string => new URL(url, self.location.href).href;
ort.env.wasm.wasmPaths = { mjs: absolute(loaderUrl), wasm: absolute(wasmUrl) };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

let decoder: Promise<ort.InferenceSession> | null = null;
let checkpoint = ""; // of the decoder: the next round may have another one
let embedding: { imageId: string; tensor: ort.Tensor } | null = null;

self.onmessage = async ({ data }: MessageEvent<WorkerRequest>) => {
  let reply: WorkerReply;
  try {
    reply = { id: data.id, ...(data.kind === "open" ? await open(data) : await decode(data)) };
  } catch (error) {
    reply = { id: data.id, error: error instanceof Error ? error.message : String(error) };
  }
  self.postMessage(reply);
};

async function open(request: Extract<WorkerRequest, { kind: "open" }>): Promise<object> {
  if (request.checkpoint !== checkpoint) decoder = null;
  checkpoint = request.checkpoint;
  decoder ??= bytesOf("/api/decoder").then((file) => ort.InferenceSession.create(new Uint8Array(file)));
  decoder.catch(() => (decoder = null)); // the next task tries again
  const [halves] = await Promise.all([
    bytesOf(`/api/embeddings/${encodeURIComponent(request.imageId)}`),
    decoder,
  ]);
  const values = halvesToFloats(new Uint16Array(halves));
  embedding?.tensor.dispose();
  embedding = {
    imageId: request.imageId,
    tensor: new ort.Tensor("float32", values, [1, ...request.embeddingShape]),
  };
  return {};
}

async function decode(request: Extract<WorkerRequest, { kind: "decode" }>): Promise<object> {
  if (!decoder || embedding?.imageId !== request.imageId) throw new Error("the embedding is not loaded");
  const { prompt, side } = request;
  const count = prompt.pointLabels.length;
  const maskInput = prompt.maskInput ?? new Float32Array(side * side);
  const outputs = await (await decoder).run({
    image_embedding: embedding.tensor,
    point_coords: new ort.Tensor("float32", Float32Array.from(prompt.pointCoords.flat()), [1, count, 2]),
    point_labels: new ort.Tensor("int64", BigInt64Array.from(prompt.pointLabels, BigInt), [1, count]),
    mask_input: new ort.Tensor("float32", maskInput, [1, 1, side, side]),
    has_mask_input: new ort.Tensor("float32", [prompt.maskInput ? 1 : 0], [1]),
  });
  const logits = outputs.low_res_masks.data as Float32Array;
  return {
    lowResMasks: halvesToFloats(floatsToHalves(logits)), // as the server's answers travel
    predictedIou: Array.from(outputs.predicted_iou.data as Float32Array),
  };
}

async function bytesOf(url: string): Promise<ArrayBuffer> {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  return response.arrayBuffer();
}
