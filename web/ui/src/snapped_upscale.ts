/**
 * Masks whose edges are those of the image: the model's logits to masks made of superpixels, as
 * stages/snapped_upscale.py has it. The server cuts the image up; what lies in the same superpixel
 * every time is one atom.
 */

import { Candidates, type Clicked, type Place } from "./click_answers";
import { ClickScorer } from "./click_scorer";
import { inputSize, type Point } from "./geometry";
import { contains, EMPTY, type Mask, subtract, trim, union } from "./mask";
import { isOneClick, meantOutputs, type Prompt } from "./prompt";
import type { Size } from "./rle";
import { Unions } from "./unions";
import { type Axis, axisOf, type Enlarged, type Enlarges, type Offer, type Output, pixelsReading, Upscale } from "./upscale";

/** An image or a crop cut up several times, in a frame of its own. */
export interface Superpixels extends Size {
  /** Which atom a pixel belongs to, rows first. */
  atoms: Uint32Array;
  /** Of each segmentation: which superpixel an atom belongs to. */
  segmentations: Uint32Array[];
  /** What edges alone put together: of each, the first superpixel of the first segmentation and the one after its last. */
  unions: Uint32Array;
  /** Strength of the border between each superpixel of the first segmentation and the one of next number. */
  borders: Float32Array;
  /** Of each union: pixels from its deepest place to what is outside. */
  depths: Float32Array;
  /** Says what a click means. */
  clickScorer: ClickScorer;
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

/** The server's packed bytes, see `packed` in web/superpixels.py. */
export function superpixelsOf(packed: ArrayBuffer): Superpixels {
  const [height, width, count, number, unions, borders, weights] = new Uint32Array(packed, 0, HEADER);
  let at = HEADER;
  const take = (length: number): number => (at += length) - length;
  const integers = (length: number): Uint32Array => new Uint32Array(packed, 4 * take(length), length);
  const reals = (length: number): Float32Array => new Float32Array(packed, 4 * take(length), length);
  const whole = HEADER + height * width + number * count + 2 * unions + borders + unions + weights;
  if (packed.byteLength !== 4 * whole) throw new Error("superpixels that were cut short");
  return {
    height,
    width,
    atoms: integers(height * width),
    segmentations: Array.from({ length: number }, () => integers(count)),
    unions: integers(2 * unions),
    borders: reals(borders),
    depths: reals(unions),
    clickScorer: new ClickScorer(reals(weights)),
  };
}

/** For one click that is all there is. */
const NUM_OFFERED = 3;
/** Of 255, what an enlarged pixel must have more of to lie in the mask; less than one half, as the engine has it. */
const HALF = 125;
/** Numbers that say how many others follow. */
const HEADER = 7;

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

interface InAtoms {
  /** Of each atom: whether it is mask. */
  mask: Uint8Array;
  /** IoU of what each segmentation makes alone with the mask. */
  ofSegmentations: number[];
  /** IoU of the mask with the union most like it. */
  ofUnions: number;
}

class SnappedUpscale implements Enlarges {
  readonly side: number;
  private readonly size: Size;
  private readonly found = new WeakMap<Float32Array, InAtoms>();
  private readonly corrected = new WeakMap<Float32Array, Mask>();
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
    this.size = size;
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
    this.unions = new Unions(superpixels, this.areas);
  }

  /**
   * The stability score is an agreement: the mean IoU of each segmentation's mask with that of all, times its IoU with
   * the union of superpixels most like it.
   */
  enlarge(logits: Float32Array): Enlarged {
    const found = this.inAtoms(logits);
    return { mask: this.corrected.get(logits) ?? this.inImage(found.mask), stabilityScore: agreementOf(found) };
  }

  /**
   * For a click the likeliest of the outputs and of what the unions around it make of the mask before. Otherwise what
   * the model says of its own masks counts as much as the agreement: their geometric mean.
   */
  offer(outputs: readonly Output[], prompt: Prompt): Offer[] {
    const isOne = isOneClick(prompt);
    if (!isOne && !prompt.before) {
      return meantOutputs(prompt).map((output) => {
        const { logits, predictedIou } = outputs[output];
        const agreement = agreementOf(this.inAtoms(logits));
        return { drawn: logits, predictedIou: Math.sqrt(Math.min(Math.max(0, predictedIou), 1) * agreement), output };
      });
    }
    const said = outputs.map(({ logits, predictedIou: ofHead }) => ({ ...this.inAtoms(logits), ofHead }));
    const clicked = this.clickedBy(prompt);
    const candidates = new Candidates(said, clicked, this.superpixels, this.areas, this.unions);
    const found = candidates.likeliest(isOne ? NUM_OFFERED : 1, this.superpixels.clickScorer);
    const source = prompt.before && { mask: prompt.before, inAtoms: this.inImage(clicked.before) };
    return found.map(({ mask, predictedIou, output }) => ({
      drawn: output === null ? this.drawnAs(mask, source) : outputs[output].logits,
      predictedIou,
      output,
    }));
  }

  private clickedBy({ points, labels, before }: Prompt): Clicked {
    const places = points.map((point) => this.placeOf(point));
    const inside = before ? this.ofAtoms(before) : new Uint8Array(this.areas.length);
    if (before) inside[places[places.length - 1].atom] = 1 - labels[labels.length - 1]; // which is what is to be mended
    return { places, labels, before: inside };
  }

  private placeOf({ x, y }: Point): Place {
    const { width, height, atoms } = this.superpixels;
    const along = (place: number, work: number, image: number): number =>
      Math.min(Math.max(Math.floor(((place + 0.5) * work) / image), 0), work - 1);
    const [column, row] = [along(x, width, this.size.width), along(y, height, this.size.height)];
    return { x: column, y: row, atom: atoms[row * width + column] };
  }

  /** A mask of the image, as those atoms that lie in it by more than half. */
  private ofAtoms(mask: Mask): Uint8Array {
    const { width, height, atoms } = this.superpixels;
    const inside = new Float64Array(this.areas.length);
    for (let row = 0, at = 0; row < height; row++) {
      const y = ((row + 0.5) * this.size.height) / height;
      for (let column = 0; column < width; column++, at++) {
        if (contains(mask, ((column + 0.5) * this.size.width) / width, y)) inside[atoms[at]]++;
      }
    }
    const mostly = new Uint8Array(inside.length);
    for (let atom = 0; atom < mostly.length; atom++) mostly[atom] = Number(2 * inside[atom] > this.areas[atom]);
    return mostly;
  }

  /** Stands for logits that are made into this mask; `source`: of which it is made, beside it in atoms. */
  private drawnAs(mask: Uint8Array, source: { mask: Mask; inAtoms: Mask } | null): Float32Array {
    const drawn = new Float32Array();
    const levels = this.levels(Float64Array.from(mask, (inside) => inside - 0.5));
    this.found.set(drawn, this.agreed(mask, levels));
    if (source) this.corrected.set(drawn, changedAlike(source.mask, source.inAtoms, this.inImage(mask)));
    return drawn;
  }

  /** Found once for each answer: its worth is asked for, and then its mask. */
  private inAtoms(logits: Float32Array): InAtoms {
    let found = this.found.get(logits);
    if (!found) this.found.set(logits, (found = this.find(logits)));
    return found;
  }

  private find(logits: Float32Array): InAtoms {
    const levels = this.levels(this.meansOfAtoms(logits));
    const mask = new Uint8Array(this.areas.length);
    for (let atom = 0; atom < mask.length; atom++) {
      let sum = 0;
      for (const level of levels) sum += level[atom];
      mask[atom] = Number(sum > 0);
    }
    return this.agreed(mask, levels);
  }

  /** Of each segmentation: values of the atoms, as it has them; what is above 0 is its mask. */
  private levels(ofAtoms: Float64Array): Float64Array[] {
    return this.segmentations.map((segmentation) => segmentation.smoothed(ofAtoms));
  }

  private agreed(mask: Uint8Array, levels: readonly Float64Array[]): InAtoms {
    const { areas, unions } = this;
    const ofSegmentations = levels.map((level) => {
      let [shared, either] = [0, 0];
      for (let atom = 0; atom < mask.length; atom++) {
        const isAlone = level[atom] > 0;
        if (mask[atom] && isAlone) shared += areas[atom];
        if (mask[atom] || isAlone) either += areas[atom];
      }
      return shared / Math.max(either, 1);
    });
    return { mask, ofSegmentations, ofUnions: unions.ious(mask).reduce((most, iou) => Math.max(most, iou), 0) };
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
  private inImage(inAtoms: Uint8Array): Mask {
    const { rows, columns } = this.toImage;
    const { atoms, width, height } = this.superpixels;
    const drawn = new Uint8Array(atoms.length);
    let [top, bottom, left, right] = [height, -1, width, -1];
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        if (!inAtoms[atoms[at]]) continue;
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
        bits[(y - y0) * across + x] = Number(Math.round(weighted(rows, y, wide, x, across)) > HALF);
      }
    }
    return trim({ x: x0, y: y0, width: across, height: y1 - y0, bits });
  }
}

/** A mask changed where `target` differs from `source`, which is nearly that mask. */
function changedAlike(mask: Mask, source: Mask, target: Mask): Mask {
  return trim(subtract(union(mask, subtract(target, source)), subtract(source, target)));
}

/** The mean IoU of each segmentation's mask with that of all, times its IoU with the union most like it. */
function agreementOf({ ofSegmentations, ofUnions }: InAtoms): number {
  return (ofSegmentations.reduce((sum, iou) => sum + iou, 0) / ofSegmentations.length) * ofUnions;
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
