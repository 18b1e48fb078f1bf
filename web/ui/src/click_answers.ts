/** What somebody means who clicks, as stages/click_answers.py has it. */

import type { ClickScorer } from "./click_scorer";
import { depthLooks, Distances, greatestDepth } from "./depths";
import type { Superpixels } from "./snapped_upscale";
import type { Around, Unions } from "./unions";

/** IoU from which on, of two masks, only the one of more worth is offered. */
const ALIKE = 0.5;
const LEAST_SHARE = 1e-4;
/** More count as so many. */
const [MOST_CLICKS, MOST_UNHEEDED] = [5, 3];

/** A mask that the model has made, laid on superpixels. */
export interface OutputMask {
  /** By atoms. */
  mask: Uint8Array;
  /** What the model says of it. */
  ofHead: number;
  /** IoU of what each segmentation makes alone with the mask. */
  ofSegmentations: readonly number[];
  /** IoU of the mask with the union most like it. */
  ofUnions: number;
}

/** One that may be meant. */
export interface Meant {
  mask: Uint8Array;
  predictedIou: number;
  /** Which of the model's it is; null: it is made with a union. */
  output: number | null;
}

/** The clicks for one mask, in the superpixels' frame, and the mask that the last of them corrects. */
export interface Clicked {
  places: readonly Place[];
  labels: readonly number[];
  /** By atoms; the one that was clicked last is as the click does not want it, whatever most of its pixels are. */
  before: Uint8Array;
}

export interface Place {
  x: number;
  y: number;
  /** That it lies in. */
  atom: number;
}

/** All that may be meant by the last of some clicks. */
export class Candidates {
  private readonly made: Uint8Array[];
  private readonly distances: Distances;
  private readonly around: Around;
  /** What each union around the click changes, and the mask that it makes. */
  private readonly changes: Uint8Array[];
  private readonly regions: Uint8Array[];
  private readonly whole: number;

  /** `areas`: of the atoms. */
  constructor(
    private readonly outputs: readonly OutputMask[],
    private readonly clicked: Clicked,
    private readonly superpixels: Superpixels,
    private readonly areas: Float64Array,
    unions: Unions,
  ) {
    const { before } = clicked;
    this.made = outputs.map(({ mask }) => mask);
    const { x, y, atom } = this.lastPlace;
    this.distances = new Distances(superpixels, areas.length, x, y);
    this.around = unions.around(atom, this.distances);
    this.whole = areas.reduce((sum, area) => sum + area, 0);
    const changeable = before.map((inside) => Number(inside !== this.lastLabel));
    this.changes = this.around.which.map((union) => unions.mask(union).map((inside, at) => inside & changeable[at]));
    this.regions = this.changes.map((change) => change.map((changed, at) => changed ^ before[at]));
  }

  /** So many, the largest first, and none that does not heed the last click while there are others. */
  likeliest(number: number, scorer: ClickScorer): Meant[] {
    const { made, regions, areas } = this;
    const sizes = regions.map((region) => sizeOf(region, areas));
    const ious = regions.map((region) => made.map((mask) => iouOf(region, mask, areas)));
    const worth = scorer.worth({ looks: this.looks(), areas: sizes, facts: this.facts(), ious });
    const candidates = [...made, ...regions].map((mask, at) => {
      const size = sizeOf(mask, areas);
      const predictedIou = size > 0 ? worth[at] : 0;
      const rank = mask[this.lastPlace.atom] === this.lastLabel ? predictedIou : predictedIou - 1;
      return { mask, size, predictedIou, rank, output: at < made.length ? at : null };
    });
    return unlike(candidates, areas, number).sort((one, other) => other.size - one.size);
  }

  private looks(): number[][] {
    const { around, areas } = this;
    return this.changes.map((change, at) => {
      const changed = sizeOf(change, areas);
      const depth = this.distances.depth(change);
      return [
        ...around.looks[at],
        Math.log(changed / this.whole + LEAST_SHARE),
        changed / around.areas[at],
        Math.log(depth + 1),
        depth / Math.sqrt(Math.max(changed, 1)),
        ...this.made.map((mask) => sharedOf(change, mask, areas) / Math.max(changed, 1)),
        ...this.after(this.regions[at]),
      ];
    });
  }

  private facts(): number[][] {
    return this.outputs.map(({ mask, ofHead, ofSegmentations, ofUnions }, output) => [
      ofHead,
      ofUnions,
      ofSegmentations.reduce((sum, iou) => sum + iou, 0) / ofSegmentations.length,
      Math.min(...ofSegmentations),
      Math.log(sizeOf(mask, this.areas) / this.whole + LEAST_SHARE),
      mask[this.lastPlace.atom],
      ...this.outputs.map((_, other) => Number(other === output)),
      ...this.depthIn(mask),
      ...this.after(mask),
    ]);
  }

  /** How deep the last click lies in what a mask adds or takes away as it asks. */
  private depthIn(mask: Uint8Array): number[] {
    const { before } = this.clicked;
    const change = mask.map((inside, atom) => Number(inside === this.lastLabel && before[atom] !== inside));
    return depthLooks(this.distances.depth(change), greatestDepth(this.superpixels, change));
  }

  /** Clicks that a mask does not heed, its IoU with the mask before, what was clicked last and the number of clicks. */
  private after(mask: Uint8Array): number[] {
    const { places, labels, before } = this.clicked;
    const unheeded = places.filter(({ atom }, at) => mask[atom] !== labels[at]).length;
    const iou = iouOf(before, mask, this.areas);
    return [Math.min(unheeded, MOST_UNHEEDED), iou, this.lastLabel, Math.min(labels.length, MOST_CLICKS)];
  }

  private get lastPlace(): Place {
    return this.clicked.places[this.clicked.places.length - 1];
  }

  private get lastLabel(): number {
    return this.clicked.labels[this.clicked.labels.length - 1];
  }
}

/** Of highest rank first; of those that are like a better one, as many as are missing, and last those of a rank below 0. */
function unlike<T extends { mask: Uint8Array; rank: number }>(candidates: readonly T[], areas: Float64Array, number: number): T[] {
  const ordered = [...candidates].sort((one, other) => other.rank - one.rank);
  const offered: T[] = [];
  for (const one of ordered) {
    if (offered.length === number || one.rank < 0) break;
    if (offered.every((other) => iouOf(one.mask, other.mask, areas) <= ALIKE)) offered.push(one);
  }
  const others = ordered.filter((one) => !offered.includes(one));
  return [...offered, ...others].slice(0, number);
}

function sizeOf(mask: Uint8Array, areas: Float64Array): number {
  return sharedOf(mask, mask, areas);
}

function sharedOf(one: Uint8Array, other: Uint8Array, areas: Float64Array): number {
  let shared = 0;
  for (let atom = 0; atom < one.length; atom++) if (one[atom] && other[atom]) shared += areas[atom];
  return shared;
}

/** 0 for two empty masks. */
function iouOf(one: Uint8Array, other: Uint8Array, areas: Float64Array): number {
  const shared = sharedOf(one, other, areas);
  return shared / Math.max(sizeOf(one, areas) + sizeOf(other, areas) - shared, 1);
}
