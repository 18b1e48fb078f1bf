/** Three answers to one click, as stages/click_answers.py has it. */

import type { ClickScorer } from "./click_scorer";
import type { Unions } from "./unions";

const NUM_OFFERED = 3;
/** IoU from which on, of two masks, only the one of more worth is offered. */
const ALIKE = 0.5;
const LEAST_SHARE = 1e-4;

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
  /** Which of the model's it is; null: a union. */
  output: number | null;
}

/**
 * Largest first.
 *
 * `areas`: of the atoms. `place`: a pixel of the superpixels' frame, in this atom.
 */
export function meant(
  outputs: readonly OutputMask[],
  unions: Unions,
  areas: Float64Array,
  place: { x: number; y: number; atom: number },
  scorer: ClickScorer,
): Meant[] {
  const around = unions.around(place.x, place.y);
  const whole = areas.reduce((sum, area) => sum + area, 0);
  const facts = outputs.map(({ mask, ofHead, ofSegmentations, ofUnions }) => [
    ofHead,
    ofUnions,
    ofSegmentations.reduce((sum, iou) => sum + iou, 0) / ofSegmentations.length,
    Math.min(...ofSegmentations),
    Math.log(sizeOf(mask, areas) / whole + LEAST_SHARE),
    mask[place.atom],
  ]);
  const withUnions = outputs.map(({ mask }) => unions.ious(mask));
  const ious = around.which.map((union) => withUnions.map((values) => values[union]));
  const worth = scorer.worth({ looks: around.looks, areas: around.areas, facts, ious });
  const candidates = [...outputs.map(({ mask }) => mask), ...around.which.map((union) => unions.mask(union))].map(
    (mask, at) => {
      const size = sizeOf(mask, areas);
      return { mask, size, predictedIou: size > 0 ? worth[at] : 0, output: at < outputs.length ? at : null };
    },
  );
  return likeliest(candidates, areas).sort((one, other) => other.size - one.size);
}

/** Of most worth first; of those that are like a better one, as many as are missing. */
function likeliest<T extends Meant>(candidates: readonly T[], areas: Float64Array): T[] {
  const ordered = [...candidates].sort((one, other) => other.predictedIou - one.predictedIou);
  const offered: T[] = [];
  for (const one of ordered) {
    if (offered.length === NUM_OFFERED) break;
    if (offered.every((other) => iouOf(one.mask, other.mask, areas) <= ALIKE)) offered.push(one);
  }
  const others = ordered.filter((one) => !offered.includes(one));
  return [...offered, ...others].slice(0, NUM_OFFERED);
}

function sizeOf(mask: Uint8Array, areas: Float64Array): number {
  let size = 0;
  for (let atom = 0; atom < mask.length; atom++) if (mask[atom]) size += areas[atom];
  return size;
}

/** 1 for two empty masks. */
function iouOf(one: Uint8Array, other: Uint8Array, areas: Float64Array): number {
  let [shared, either] = [0, 0];
  for (let atom = 0; atom < one.length; atom++) {
    if (one[atom] && other[atom]) shared += areas[atom];
    if (one[atom] || other[atom]) either += areas[atom];
  }
  return either ? shared / either : 1;
}
