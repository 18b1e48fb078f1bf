/** A question to the model and its answer, as the decoder's ONNX file takes and gives them. */

import { type Point, toInput } from "./geometry";
import type { Box, Mask } from "./mask";
import type { Size } from "./rle";
import type { Superpixels } from "./snapped_upscale";
import type { Output } from "./upscale";

/** In image pixels. */
export interface Prompt {
  points: readonly Point[];
  /** 1 adds, 0 removes; one for each point. */
  labels: readonly number[];
  /** x0, y0, x1, y1. */
  box: readonly number[] | null;
  /** (s, s) logits of the answer before. */
  maskInput: Float32Array | null;
  /** The mask that the last point corrects; null where it is the first, or a box came last. */
  before: Mask | null;
}

/** In the model's input frame. */
export interface ModelPrompt {
  pointCoords: [number, number][];
  pointLabels: number[];
  maskInput: Float32Array | null;
}

export interface Answer {
  /** (4, s, s): the single-mask output, then whole, part and subpart. */
  lowResMasks: Float32Array;
  predictedIou: number[];
  /** A second look, at a crop of the image. */
  near?: Near;
}

export interface Near {
  crop: Box;
  /** As an answer's; of the crop. */
  lowResMasks: Float32Array;
  predictedIou: number[];
  /** The logits as they are seen in the whole image, for the next prompt. */
  carried: Float32Array;
  /** Of the crop, where masks are made of them. */
  superpixels: Superpixels | null;
}

/** The first click of a mask. */
export function firstClick(point: Point): Prompt {
  return { points: [point], labels: [1], box: null, maskInput: null, before: null };
}

/** A click that is all that is asked about, and adds something. */
export function isOneClick({ labels, box, maskInput }: Prompt): boolean {
  return labels.length === 1 && labels[0] === 1 && !box && !maskInput;
}

/** Which outputs the model means: one point is ambiguous and gets three, all other prompts the single one. */
export function meantOutputs(prompt: Prompt): readonly number[] {
  return prompt.maskInput || prompt.box ? [0] : [1, 2, 3];
}

/** All of them, the same objects every time. */
export function outputsOf(answer: Pick<Answer, "lowResMasks" | "predictedIou">): readonly Output[] {
  let outputs = known.get(answer.lowResMasks);
  if (!outputs) {
    outputs = answer.predictedIou.map((predictedIou, output) => ({ logits: logitsOf(answer, output), predictedIou }));
    known.set(answer.lowResMasks, outputs);
  }
  return outputs;
}

const known = new WeakMap<Float32Array, readonly Output[]>();

export function logitsOf({ lowResMasks }: Pick<Answer, "lowResMasks">, output: number): Float32Array {
  const cells = lowResMasks.length / 4;
  return lowResMasks.slice(output * cells, (output + 1) * cells);
}

/** Without a box, a padding point follows the points; a box follows them as its two corners. */
export function toModel(prompt: Prompt, size: Size, imageSize: number): ModelPrompt {
  const pointCoords = prompt.points.map((point) => toInput(point, size, imageSize));
  const pointLabels = [...prompt.labels];
  if (prompt.box) {
    const [x0, y0, x1, y1] = prompt.box;
    pointCoords.push(toInput({ x: x0, y: y0 }, size, imageSize), toInput({ x: x1, y: y1 }, size, imageSize));
    pointLabels.push(2, 3);
  } else {
    pointCoords.push([0, 0]);
    pointLabels.push(-1);
  }
  return { pointCoords, pointLabels, maskInput: prompt.maskInput };
}
