/** Runs the decoder's ONNX file off the page's main thread; owns its session and the embedding. */

import * as ort from "onnxruntime-web/wasm";
import loaderUrl from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmUrl from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { floatsToHalves, halvesToFloats } from "./half";
import type { ModelPrompt } from "./prompt";

/** An image's embedding. */
interface Named {
  imageId: string;
  checkpoint: string;
}

export type WorkerRequest = { id: number } & (
  | ({ kind: "prepare" } & Named)
  | ({ kind: "open"; embeddingShape: [number, number, number] } & Named)
  | { kind: "decode"; imageId: string; prompt: ModelPrompt; side: number }
);

export type WorkerReply =
  | { id: number; lowResMasks?: Float32Array; predictedIou?: number[] }
  | { id: number; error: string };

/** An embedding or a decoder that has not come by then may be asked for again. */
const LONGEST_MILLISECONDS = 300_000;

const absolute = (url: string): string => new URL(url, self.location.href).href;
ort.env.wasm.wasmPaths = { mjs: absolute(loaderUrl), wasm: absolute(wasmUrl) };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

/** By checkpoint: the next round has another one. */
const decoders = new Map<string, Promise<ort.InferenceSession>>();
/** By checkpoint and image: of the task in work and of the one fetched ahead. */
const fetched = new Map<string, Promise<ArrayBuffer>>();
let opened: { imageId: string; decoder: ort.InferenceSession; embedding: ort.Tensor } | null = null;
/** Id of the request to open an image that came last. */
let lastOpen = -1;

self.onmessage = async ({ data }: MessageEvent<WorkerRequest>) => {
  let reply: WorkerReply;
  try {
    if (data.kind === "decode") reply = { id: data.id, ...(await decode(data)) };
    else reply = { id: data.id, ...(await (data.kind === "open" ? open(data) : prepare(data))) };
  } catch (error) {
    reply = { id: data.id, error: error instanceof Error ? error.message : String(error) };
  }
  self.postMessage(reply);
};

async function prepare(request: Named): Promise<object> {
  await Promise.all([decoderOf(request), halvesOf(request)]);
  return {};
}

async function open(request: Extract<WorkerRequest, { kind: "open" }>): Promise<object> {
  lastOpen = request.id;
  const [decoder, halves] = await Promise.all([decoderOf(request), halvesOf(request)]);
  if (request.id !== lastOpen) return {}; // another image was opened meanwhile
  const values = halvesToFloats(new Uint16Array(halves));
  opened?.embedding.dispose();
  const embedding = new ort.Tensor("float32", values, [1, ...request.embeddingShape]);
  opened = { imageId: request.imageId, decoder, embedding };
  return {};
}

function decoderOf({ checkpoint }: Named): Promise<ort.InferenceSession> {
  return once(decoders, checkpoint, async () =>
    ort.InferenceSession.create(new Uint8Array(await bytesOf("/api/decoder"))),
  );
}

function halvesOf(request: Named): Promise<ArrayBuffer> {
  return once(fetched, `${request.checkpoint} ${request.imageId}`, () => bytesOf(`/api/embeddings/${encodeURIComponent(request.imageId)}`));
}

/** Two are kept, those asked for last. Failures are forgotten: the next task tries again. */
function once<Value>(cache: Map<string, Promise<Value>>, key: string, make: () => Promise<Value>): Promise<Value> {
  const made = cache.get(key) ?? make();
  cache.delete(key);
  cache.set(key, made);
  for (const oldest of [...cache.keys()].slice(0, -2)) cache.delete(oldest);
  made.catch(() => cache.delete(key));
  return made;
}

async function decode(request: Extract<WorkerRequest, { kind: "decode" }>): Promise<object> {
  if (opened?.imageId !== request.imageId) throw new Error("the embedding is not loaded");
  const { prompt, side } = request;
  const count = prompt.pointLabels.length;
  const maskInput = prompt.maskInput ?? new Float32Array(side * side);
  const outputs = await opened.decoder.run({
    image_embedding: opened.embedding,
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
  const response = await fetch(url, { credentials: "same-origin", signal: AbortSignal.timeout(LONGEST_MILLISECONDS) });
  if (!response.ok) throw new Error(`${url}: the server answered ${response.status}`);
  return response.arrayBuffer();
}
