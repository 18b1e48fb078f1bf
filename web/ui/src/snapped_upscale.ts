/**
 * Masks whose edges are those of the image: the model's logits to masks made of superpixels, as
 * stages/superpixels.py has it. The server cuts the image up; what lies in the same superpixel every
 * time is one atom.
 */

import { inputSize } from "./geometry";
import { EMPTY, type Mask, trim } from "./mask";
import type { Size } from "./rle";
import { type Axis, axisOf, type Enlarged, type Enlarges, pixelsReading, Upscale } from "./upscale";

/** An image or a crop cut up several times, in a frame of its own. */
export interface Superpixels extends Size {
  /** Which atom a pixel belongs to, rows first. */
  atoms: Uint32Array;
  /** Of each segmentation: which superpixel an atom belongs to. */
  segmentations: Uint32Array[];
  /** What edges alone put together: of each, the first superpixel of the first segmentation and the one after its last. */
  unions: Uint32Array;
}

/** Both ways to make masks of an image or crop; where it has no superpixels, there is one. */
export class Upscales {
  private readonly plain: Enlarges;
  private readonly snapped: Enlarges | null;

  constructor(
    readonly size: Size,
    readonly imageSize: number,
    readonly superpixels: Superpixels | null,
  ) {
    this.plain = new Upscale(size, imageSize);
    this.snapped = superpixels && new SnappedUpscale(size, imageSize, superpixels);
  }

  get canSnap(): boolean {
    return this.snapped !== null;
  }

  /** `snaps`: of superpixels, where there are some. */
  of(snaps: boolean): Enlarges {
    return (snaps && this.snapped) || this.plain;
  }
}

/** The server's packed bytes: height, width, atoms, segmentations, unions; then all of them, each four bytes. */
export function superpixelsOf(packed: ArrayBuffer): Superpixels {
  const [height, width, count, number, unions] = new Uint32Array(packed, 0, 5);
  const values = new Uint32Array(packed, 20);
  const pixels = height * width;
  const members = pixels + number * count;
  if (values.length !== members + 2 * unions) throw new Error("superpixels that were cut short");
  return {
    height,
    width,
    atoms: values.subarray(0, pixels),
    segmentations: Array.from({ length: number }, (_, at) =>
      values.subarray(pixels + at * count, pixels + (at + 1) * count),
    ),
    unions: values.subarray(members),
  };
}

class Segmentation {
  private readonly areas: Float64Array;

  constructor(
    private readonly members: Uint32Array,
    private readonly areasOfAtoms: Float64Array,
  ) {
    this.areas = new Float64Array(members.reduce((most, member) => Math.max(most, member), 0) + 1);
    members.forEach((member, atom) => (this.areas[member] += areasOfAtoms[atom]));
  }

  /** Values of the atoms, each replaced by the mean over its superpixel. */
  smoothed(values: Float64Array): Float64Array {
    const { members, areas, areasOfAtoms } = this;
    const means = new Float64Array(areas.length);
    for (let atom = 0; atom < members.length; atom++) means[members[atom]] += values[atom] * areasOfAtoms[atom];
    for (let member = 0; member < means.length; member++) means[member] /= areas[member];
    const smoothed = new Float64Array(members.length);
    for (let atom = 0; atom < members.length; atom++) smoothed[atom] = means[members[atom]];
    return smoothed;
  }
}

/** All that edges alone put together, to compare masks with. */
class Unions {
  private readonly count: number;
  private readonly areas: Float64Array;

  constructor(
    private readonly runs: Uint32Array,
    private readonly members: Uint32Array,
    private readonly areasOfAtoms: Float64Array,
  ) {
    this.count = 1 + members.reduce((most, member) => Math.max(most, member), 0);
    this.areas = this.upTo(new Uint8Array(members.length).fill(1));
  }

  /** The IoU of a mask with the union that is most like it. */
  bestIou(mask: Uint8Array): number {
    const shared = this.upTo(mask);
    const area = shared[shared.length - 1];
    let best = 0;
    for (let at = 0; at < this.runs.length; at += 2) {
      const [first, end] = [this.runs[at], this.runs[at + 1]];
      const both = shared[end] - shared[first];
      best = Math.max(best, both / (this.areas[end] - this.areas[first] + area - both));
    }
    return best;
  }

  /** Pixels of a mask that lie in all superpixels before each, and in all at last. */
  private upTo(mask: Uint8Array): Float64Array {
    const { members, areasOfAtoms } = this;
    const sums = new Float64Array(this.count + 1);
    for (let atom = 0; atom < mask.length; atom++) if (mask[atom]) sums[members[atom] + 1] += areasOfAtoms[atom];
    for (let member = 1; member < sums.length; member++) sums[member] += sums[member - 1];
    return sums;
  }
}

interface InAtoms {
  /** Of each atom: whether it is mask. */
  together: Uint8Array;
  agreement: number;
}

class SnappedUpscale implements Enlarges {
  readonly side: number;
  private readonly found = new WeakMap<Float32Array, InAtoms>();
  /** From cells to the frame of the superpixels, and from there to the image. */
  private readonly rows: Axis;
  private readonly columns: Axis;
  private readonly toImage: { rows: Axis; columns: Axis };
  private readonly areas: Float64Array;
  private readonly segmentations: Segmentation[];
  private readonly unions: Unions;

  constructor(
    size: Size,
    imageSize: number,
    private readonly superpixels: Superpixels,
  ) {
    const input = inputSize(size, imageSize);
    this.side = imageSize / 4;
    this.rows = axisOf(this.side, imageSize, input.height, superpixels.height);
    this.columns = axisOf(this.side, imageSize, input.width, superpixels.width);
    this.toImage = {
      rows: resampling(superpixels.height, size.height),
      columns: resampling(superpixels.width, size.width),
    };
    this.areas = new Float64Array(superpixels.segmentations[0].length);
    for (const atom of superpixels.atoms) this.areas[atom]++;
    this.segmentations = superpixels.segmentations.map((members) => new Segmentation(members, this.areas));
    this.unions = new Unions(superpixels.unions, superpixels.segmentations[0], this.areas);
  }

  /**
   * The stability score is an agreement: the mean IoU of each segmentation's mask with that of all, times its IoU with
   * the union of superpixels most like it.
   */
  enlarge(logits: Float32Array): Enlarged {
    const { together, agreement } = this.inAtoms(logits);
    return { mask: this.inImage(together), stabilityScore: agreement };
  }

  /** The geometric mean of what the model says of its own mask and the agreement. */
  predictedIou(ofHead: number, logits: Float32Array): number {
    return Math.sqrt(Math.min(Math.max(0, ofHead), 1) * this.inAtoms(logits).agreement);
  }

  /** Found once for each answer: its worth is asked for, and then its mask. */
  private inAtoms(logits: Float32Array): InAtoms {
    let found = this.found.get(logits);
    if (!found) this.found.set(logits, (found = this.find(logits)));
    return found;
  }

  private find(logits: Float32Array): InAtoms {
    const { areas, segmentations } = this;
    const means = this.meansOfAtoms(logits);
    const levels = segmentations.map((segmentation) => segmentation.smoothed(means));
    const together = new Uint8Array(means.length);
    for (let atom = 0; atom < together.length; atom++) {
      let sum = 0;
      for (const level of levels) sum += level[atom];
      together[atom] = Number(sum > 0);
    }
    let agreement = 0;
    for (const level of levels) {
      let [shared, either] = [0, 0];
      for (let atom = 0; atom < together.length; atom++) {
        const isAlone = level[atom] > 0;
        if (together[atom] && isAlone) shared += areas[atom];
        if (together[atom] || isAlone) either += areas[atom];
      }
      agreement += shared / Math.max(either, 1) / levels.length;
    }
    return { together, agreement: agreement * this.unions.bestIou(together) };
  }

  /** Of the model's probabilities over one half, enlarged bilinearly. */
  private meansOfAtoms(logits: Float32Array): Float64Array {
    const { rows, columns, side, areas } = this;
    const { atoms, width, height } = this.superpixels;
    const chances = new Float64Array(logits.length);
    for (let cell = 0; cell < chances.length; cell++) chances[cell] = 1 / (1 + Math.exp(-logits[cell])) - 0.5;
    const line = new Float64Array(columns.cells + columns.taps);
    const sums = new Float64Array(areas.length);
    for (let y = 0; y < height; y++) {
      line.fill(0);
      for (let tap = 0; tap < rows.taps; tap++) {
        const weight = rows.weights[y * rows.taps + tap];
        const from = (rows.first[y] + tap) * side;
        if (weight) for (let cell = 0; cell < columns.cells; cell++) line[cell] += weight * chances[from + cell];
      }
      for (let x = 0; x < width; x++) {
        const first = columns.first[x];
        let value = 0;
        for (let tap = 0; tap < columns.taps; tap++) value += columns.weights[x * columns.taps + tap] * line[first + tap];
        sums[atoms[y * width + x]] += value;
      }
    }
    for (let atom = 0; atom < sums.length; atom++) sums[atom] /= areas[atom];
    return sums;
  }

  /** Columns first and then rows, each rounded to 8 bits: as Pillow resizes, and so the engine. */
  private inImage(together: Uint8Array): Mask {
    const { rows, columns } = this.toImage;
    const { atoms, width, height } = this.superpixels;
    const drawn = new Uint8Array(atoms.length);
    let [top, bottom, left, right] = [height, -1, width, -1];
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        if (!together[atoms[at]]) continue;
        drawn[at] = 255;
        if (y < top) top = y;
        bottom = y;
        if (x < left) left = x;
        if (x > right) right = x;
      }
    }
    if (bottom < 0) return EMPTY;
    const [x0, x1] = pixelsReading(columns, left, right);
    const [y0, y1] = pixelsReading(rows, top, bottom);
    const across = x1 - x0;
    const wide = new Uint8Array(across * height);
    for (let y = top; y <= bottom; y++) {
      for (let x = x0; x < x1; x++) {
        wide[y * across + x - x0] = Math.round(weighted(columns, x, drawn, y * width, 1));
      }
    }
    const bits = new Uint8Array(across * (y1 - y0));
    for (let y = y0; y < y1; y++) {
      for (let x = 0; x < across; x++) {
        bits[(y - y0) * across + x] = Number(Math.round(weighted(rows, y, wide, x, across)) > 127);
      }
    }
    return trim({ x: x0, y: y0, width: across, height: y1 - y0, bits });
  }
}

/** What one pixel reads of values that lie from `start` on, `step` apart. */
function weighted({ first, taps, weights }: Axis, pixel: number, values: ArrayLike<number>, start: number, step: number): number {
  let sum = 0;
  for (let tap = 0; tap < taps; tap++) {
    const weight = weights[pixel * taps + tap];
    if (weight) sum += weight * values[start + (first[pixel] + tap) * step];
  }
  return sum;
}

/** Along one axis: a triangle around each pixel, as wide as the pixels are that it looks at. */
function resampling(sizeIn: number, sizeOut: number): Axis {
  const scale = sizeIn / sizeOut;
  const reach = Math.max(1, scale);
  const taps = 2 * Math.ceil(reach) + 1;
  const first = new Int32Array(sizeOut);
  const weights = new Float32Array(sizeOut * taps);
  for (let pixel = 0; pixel < sizeOut; pixel++) {
    const centre = (pixel + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - reach + 0.5));
    const stop = Math.min(sizeIn, Math.floor(centre + reach + 0.5));
    const row = Array.from({ length: stop - start }, (_, tap) =>
      Math.max(0, 1 - Math.abs(start + tap + 0.5 - centre) / reach),
    );
    const sum = row.reduce((total, weight) => total + weight, 0);
    first[pixel] = start;
    weights.set(row.map((weight) => weight / sum), pixel * taps);
  }
  return { taps, first, weights, cells: sizeIn };
}
