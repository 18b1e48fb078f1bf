/** What somebody means who clicks, as stages/click_answers.py has it. */

import { type ClickScorer, nestedIous } from "./click_scorer";
import { depthLooks, Distances, greatestDepth } from "./depths";
import type { Superpixels } from "./snapped_upscale";
import type { Around, Unions } from "./unions";

/**
 * What counts of a further mask that is offered, beside what it adds to those that are: its own worth, less so many
 * times its greatest IoU with them.
 */
const [WORTH, LIKENESS] = [0.3, 1.4];
/** What is worth so much less is offered last. */
const UNHEEDED = 10;
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

interface Candidate extends Meant {
  size: number;
  /** The predicted IoU, less where the last click is not heeded. */
  worth: number;
  /** IoU with the masks that the regions make. */
  withRegions: readonly number[];
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

  /** So many, the likeliest among them, largest first; and none that does not heed the last click while there are others. */
  likeliest(number: number, scorer: ClickScorer): Meant[] {
    const { made, regions, areas } = this;
    const sizes = regions.map((region) => sizeOf(region, areas));
    const ious = regions.map((region) => made.map((mask) => iouOf(region, mask, areas)));
    const { worth, chances } = scorer.of({ looks: this.looks(), areas: sizes, facts: this.facts(), ious });
    const candidates = [...made, ...regions].map((mask, at): Candidate => {
      const output = at < made.length ? at : null;
      const size = sizeOf(mask, areas);
      const predictedIou = size > 0 ? worth[at] : 0;
      const isHeeding = mask[this.lastPlace.atom] === this.lastLabel;
      const withRegions = output === null ? nestedIous(sizes, at - made.length) : ious.map((row) => row[output]);
      return { mask, size, predictedIou, worth: predictedIou - (isHeeding ? 0 : UNHEEDED), output, withRegions };
    });
    return unlike(candidates, chances, areas, number).sort((one, other) => other.size - one.size);
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

/** The one of most worth, and then what adds most: regions that may be meant, which those before do not meet as well. */
function unlike(candidates: readonly Candidate[], chances: readonly number[], areas: Float64Array, number: number): Candidate[] {
  const offered = [mostOf(candidates, ({ worth }) => worth)];
  const alike = candidates.map(() => 0);
  const met = chances.map(() => 0);
  while (offered.length < Math.min(number, candidates.length)) {
    const last = offered[offered.length - 1];
    candidates.forEach(({ mask }, at) => (alike[at] = Math.max(alike[at], iouOf(mask, last.mask, areas))));
    met.forEach((iou, region) => (met[region] = Math.max(iou, last.withRegions[region])));
    const promise = ({ worth, withRegions }: Candidate, at: number): number => {
      const adds = chances.reduce((sum, chance, region) => sum + chance * Math.max(withRegions[region] - met[region], 0), 0);
      return adds + WORTH * (worth - LIKENESS * alike[at]);
    };
    offered.push(mostOf(candidates, (one, at) => (offered.includes(one) ? -Infinity : promise(one, at))));
  }
  return offered;
}

/** The first of those of which it is greatest. */
function mostOf<T>(some: readonly T[], value: (one: T, at: number) => number): T {
  const values = some.map(value);
  return some[values.indexOf(Math.max(...values))];
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
