/**
 * The model's low-resolution logits to a mask at image size, only around the cells above 0.
 *
 * SAM enlarges bilinearly to the padded square, cuts the padding off, and enlarges once more to the
 * image. Both steps are linear along each axis, so together they are one matrix per axis with a
 * few weights in each row. The same as stages/windows.py.
 */

import { inputSize } from "./geometry";
import { EMPTY, type Mask, trim } from "./mask";
import { meantOutputs, type Prompt } from "./prompt";
import type { Size } from "./rle";

export interface Enlarged {
  mask: Mask;
  stabilityScore: number;
}

/** What the model has made, and what it says of it. */
export interface Output {
  /** (side, side) */
  logits: Float32Array;
  predictedIou: number;
}

/** A mask that may be taken. */
export interface Offer {
  /** What `enlarge` makes it of. */
  drawn: Float32Array;
  predictedIou: number;
  /** Which of the model's outputs it is; null: the model has not made it, it is made with regions. */
  output: number | null;
}

/** Low-resolution logits (side, side) to masks of an image. */
export interface Enlarges {
  readonly side: number;
  /** The mask of the logits above 0. */
  enlarge(logits: Float32Array): Enlarged;
  /** The masks that may be taken of all the model's outputs. */
  offer(outputs: readonly Output[], prompt: Prompt): Offer[];
}

export interface Axis {
  /** Weights of each pixel. */
  taps: number;
  /** Per pixel: the first cell that it reads. */
  first: Int32Array;
  /** (pixels, taps). */
  weights: Float32Array;
  /** Cells that are read at all; those in the padding are not. */
  cells: number;
}

export class Upscale implements Enlarges {
  private readonly rows: Axis;
  private readonly columns: Axis;
  readonly side: number;

  constructor(size: Size, imageSize: number) {
    const input = inputSize(size, imageSize);
    this.side = imageSize / 4;
    this.rows = axisOf(this.side, imageSize, input.height, size.height);
    this.columns = axisOf(this.side, imageSize, input.width, size.width);
  }

  offer(outputs: readonly Output[], prompt: Prompt): Offer[] {
    return meantOutputs(prompt).map((output) => {
      const { logits, predictedIou } = outputs[output];
      return { drawn: logits, predictedIou, output };
    });
  }

  /** The stability score is the IoU of the mask cut at +offset and at -offset; 0 where both are empty. */
  enlarge(logits: Float32Array, offset = 1): Enlarged {
    const { rows, columns, side } = this;
    let [top, bottom, left, right] = [rows.cells, -1, columns.cells, -1];
    for (let row = 0; row < rows.cells; row++) {
      for (let column = 0; column < columns.cells; column++) {
        if (logits[row * side + column] > -offset) {
          if (row < top) top = row;
          bottom = row;
          if (column < left) left = column;
          if (column > right) right = column;
        }
      }
    }
    if (bottom < 0) return { mask: EMPTY, stabilityScore: 0 };
    const [y0, y1] = pixelsReading(rows, top, bottom);
    const [x0, x1] = pixelsReading(columns, left, right);
    const firstCell = columns.first[x0];
    const lastCell = Math.min(columns.first[x1 - 1] + columns.taps, columns.cells);
    const line = new Float32Array(columns.cells + columns.taps);
    const width = x1 - x0;
    const bits = new Uint8Array(width * (y1 - y0));
    let [inner, outer] = [0, 0];
    for (let y = y0; y < y1; y++) {
      line.fill(0, firstCell, lastCell);
      for (let tap = 0; tap < rows.taps; tap++) {
        const weight = rows.weights[y * rows.taps + tap];
        if (weight === 0) continue;
        const from = (rows.first[y] + tap) * side;
        for (let cell = firstCell; cell < lastCell; cell++) line[cell] += weight * logits[from + cell];
      }
      const at = (y - y0) * width - x0;
      for (let x = x0; x < x1; x++) {
        const first = columns.first[x];
        let value = 0;
        for (let tap = 0; tap < columns.taps; tap++) {
          value += columns.weights[x * columns.taps + tap] * line[first + tap];
        }
        if (value > -offset) {
          outer++;
          if (value > 0) bits[at + x] = 1;
          if (value > offset) inner++;
        }
      }
    }
    const mask = trim({ x: x0, y: y0, width, height: y1 - y0, bits });
    return { mask, stabilityScore: outer ? inner / outer : 0 };
  }
}

/** [start, stop) of the pixels that read any of these cells. */
export function pixelsReading(axis: Axis, firstCell: number, lastCell: number): [number, number] {
  const count = axis.first.length;
  let start = 0;
  while (start < count && lastRead(axis, start) < firstCell) start++;
  let stop = start;
  while (stop < count && axis.first[stop] <= lastCell) stop++;
  return [start, stop];
}

function lastRead(axis: Axis, pixel: number): number {
  let tap = axis.taps - 1;
  while (tap > 0 && axis.weights[pixel * axis.taps + tap] === 0) tap--;
  return axis.first[pixel] + tap;
}

/** Both bilinear steps along one axis. */
export function axisOf(lowRes: number, padded: number, input: number, original: number): Axis {
  const toSquare = bilinear(lowRes, padded);
  const toImage = bilinear(input, original);
  const rows = Array.from({ length: original }, (_, pixel) => {
    const row = new Map<number, number>();
    for (const [middle, weight] of toImage[pixel]) {
      for (const [cell, inner] of toSquare[middle]) row.set(cell, (row.get(cell) ?? 0) + weight * inner);
    }
    return [...row].filter(([, weight]) => weight !== 0).sort(([a], [b]) => a - b);
  });
  const first = Int32Array.from(rows, (row) => row[0][0]);
  const taps = Math.max(...rows.map((row) => row[row.length - 1][0] - row[0][0] + 1));
  const weights = new Float32Array(original * taps);
  rows.forEach((row, pixel) => {
    for (const [cell, weight] of row) weights[pixel * taps + cell - row[0][0]] = weight;
  });
  const cells = Math.max(...rows.map((row) => row[row.length - 1][0])) + 1;
  return { taps, first, weights, cells };
}

/** Per pixel the cells it reads and their weights, with half-pixel centres. */
function bilinear(sizeIn: number, sizeOut: number): [number, number][][] {
  return Array.from({ length: sizeOut }, (_, pixel) => {
    const place = Math.max(0, ((pixel + 0.5) * sizeIn) / sizeOut - 0.5);
    const lower = Math.min(Math.floor(place), sizeIn - 1);
    const upper = Math.min(lower + 1, sizeIn - 1);
    const share = place - lower;
    return upper === lower ? [[lower, 1]] : [[lower, 1 - share], [upper, share]];
  });
}
