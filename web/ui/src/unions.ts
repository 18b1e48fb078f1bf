/** What edges alone put together of an image: to compare masks with, and to take for an answer. As stages/unions.py. */

import { type Distances, depthLooks } from "./depths";
import type { Superpixels } from "./snapped_upscale";

/** Unions that are looked at around a place, the largest. */
const MOST_AROUND = 40;

/** The unions that hold a place, one within the other, largest first. */
export interface Around {
  which: number[];
  areas: number[];
  /** What stages/unions.py says of each. */
  looks: number[][];
}

export class Unions {
  private readonly count: number;
  private readonly areas: Float64Array;
  private readonly members: Uint32Array;
  private readonly runs: Uint32Array;

  constructor(
    private readonly superpixels: Superpixels,
    private readonly areasOfAtoms: Float64Array,
  ) {
    this.members = superpixels.segmentations[0];
    this.runs = superpixels.unions;
    this.count = superpixels.borders.length + 1;
    this.areas = this.upTo(new Uint8Array(this.members.length).fill(1));
  }

  /** IoU of a mask, by atoms, with every union. */
  ious(mask: Uint8Array): Float64Array {
    const shared = this.upTo(mask);
    const area = shared[shared.length - 1];
    return Float64Array.from({ length: this.runs.length / 2 }, (_, union) => {
      const [first, end] = this.run(union);
      const both = shared[end] - shared[first];
      return both / (this.areas[end] - this.areas[first] + area - both);
    });
  }

  /** A union by atoms. */
  mask(union: number): Uint8Array {
    const [first, end] = this.run(union);
    const inside = new Uint8Array(this.members.length);
    for (let at = 0; at < inside.length; at++) inside[at] = Number(first <= this.members[at] && this.members[at] < end);
    return inside;
  }

  /** Of a pixel that lies in an atom; `distances`: from there. */
  around(atom: number, { toAtoms, toEnd }: Distances): Around {
    const { width, height, borders, depths } = this.superpixels;
    const nearest = new Float64Array(this.count).fill(Infinity);
    toAtoms.forEach((distance, at) => (nearest[this.members[at]] = Math.min(nearest[this.members[at]], distance)));
    const before = new Float64Array(this.count + 1).fill(toEnd);
    const behind = new Float64Array(this.count + 1).fill(toEnd);
    for (let at = 0; at < this.count; at++) before[at + 1] = Math.min(before[at], nearest[at]);
    for (let at = this.count - 1; at >= 0; at--) behind[at] = Math.min(behind[at + 1], nearest[at]);
    const here = this.members[atom];
    const which: number[] = [];
    for (let union = 0; union < depths.length; union++) {
      const [first, end] = this.run(union);
      if (first <= here && here < end) which.push(union);
    }
    which.sort((one, other) => this.areaOf(other) - this.areaOf(one)).splice(MOST_AROUND);
    const looks = which.map((union) => {
      const [first, end] = this.run(union);
      const [share, logDeepest, missed] = depthLooks(Math.min(before[first], behind[end]), depths[union]);
      const outward = Math.min(first > 0 ? borders[first - 1] : 1, end < this.count ? borders[end - 1] : 1);
      const within = borders.subarray(first, end - 1).reduce((most, border) => Math.max(most, border), 0);
      const area = this.areaOf(union);
      return [
        share,
        logDeepest,
        Math.log(area / (width * height)),
        outward,
        within,
        outward - within,
        depths[union] / Math.sqrt(area),
        missed,
      ];
    });
    return { which, areas: which.map((union) => this.areaOf(union)), looks };
  }

  private run(union: number): [number, number] {
    return [this.runs[2 * union], this.runs[2 * union + 1]];
  }

  private areaOf(union: number): number {
    const [first, end] = this.run(union);
    return this.areas[end] - this.areas[first];
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
