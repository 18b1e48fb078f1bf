/** A question to the model and its answer, as the decoder's ONNX file takes and gives them. */

import { type Point, toInput } from "./geometry";
import type { Box } from "./mask";
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

/** Channels of the outputs that may be offered. */
export const [SINGLE, SEVERAL]: readonly (readonly number[])[] = [[0], [1, 2, 3]];

/** One point is ambiguous and gets three outputs; all other prompts get the single one. */
export function offeredChannels(prompt: Prompt): readonly number[] {
  return prompt.maskInput || prompt.box ? SINGLE : SEVERAL;
}

/** The place of a click that is all that is asked about, and adds something. */
export function oneClickOf(prompt: Prompt): Point | null {
  const isOne = prompt.labels.length === 1 && prompt.labels[0] === 1 && !prompt.box && !prompt.maskInput;
  return isOne ? prompt.points[0] : null;
}

export function outputsOf(answer: Pick<Answer, "lowResMasks" | "predictedIou">, channels: readonly number[]): Output[] {
  return channels.map((channel) => ({
    logits: channelOf(answer, channel),
    predictedIou: answer.predictedIou[channel],
  }));
}

/** One output's logits. */
export function channelOf({ lowResMasks }: Pick<Answer, "lowResMasks">, channel: number): Float32Array {
  const cells = lowResMasks.length / 4;
  return lowResMasks.slice(channel * cells, (channel + 1) * cells);
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
