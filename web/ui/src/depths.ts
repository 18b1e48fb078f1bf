/** How deep places lie in masks of superpixels, as stages/unions.py has it. In pixels of the superpixels' frame; all beyond it is outside. */

import type { Superpixels } from "./snapped_upscale";

type Frame = Pick<Superpixels, "width" | "height" | "atoms">;

/** Pixels by which a place misses the middle; more counts as so many. */
const DEEPEST = 10;

/** From one pixel. */
export class Distances {
  /** To the nearest pixel of each atom. */
  readonly toAtoms: Float64Array;
  /** To what is outside of the frame. */
  readonly toEnd: number;

  constructor({ width, height, atoms }: Frame, count: number, x: number, y: number) {
    const squares = new Float64Array(count).fill(Infinity);
    for (let row = 0, at = 0; row < height; row++) {
      for (let column = 0; column < width; column++, at++) {
        const square = (row - y) ** 2 + (column - x) ** 2;
        if (square < squares[atoms[at]]) squares[atoms[at]] = square;
      }
    }
    this.toAtoms = squares.map(Math.sqrt);
    this.toEnd = Math.min(x, y, width - 1 - x, height - 1 - y) + 1;
  }

  /** To what is outside of a mask, by atoms. */
  depth(mask: Uint8Array): number {
    return this.toAtoms.reduce((least, distance, atom) => (mask[atom] ? least : Math.min(least, distance)), this.toEnd);
  }
}

/** From the deepest place of a mask, by atoms, to what is outside. */
export function greatestDepth(frame: Frame, mask: Uint8Array): number {
  const { width, height, inside } = trimmed(frame, mask);
  const squares = new Float64Array(width * height); // of the way up or down
  for (let x = 0; x < width; x++) {
    for (let y = 0, way = 0, at = x; y < height; y++, at += width) squares[at] = way = inside[at] && way + 1;
    for (let y = height, way = 0, at = x + (height - 1) * width; y > 0; y--, at -= width) {
      way = inside[at] && way + 1;
      squares[at] = Math.min(squares[at], way) ** 2;
    }
  }
  let most = 0;
  for (let row = 0; row < squares.length; row += width) {
    for (let x = 0; x < width; x++) {
      let least = squares[row + x];
      for (let aside = 1; least > most && aside ** 2 < least; aside++) {
        const left = x >= aside ? squares[row + x - aside] : 0;
        const right = x + aside < width ? squares[row + x + aside] : 0;
        least = Math.min(least, aside ** 2 + Math.min(left, right));
      }
      most = Math.max(most, least);
    }
  }
  return Math.sqrt(most);
}

/** The pixels of a mask, by atoms, and of the box around it, row by row. */
function trimmed({ width, height, atoms }: Frame, mask: Uint8Array): { width: number; height: number; inside: Uint8Array } {
  let [top, bottom, left, right] = [height, 0, width, 0];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!mask[atoms[at]]) continue;
      if (y < top) top = y;
      bottom = y + 1;
      if (x < left) left = x;
      if (x >= right) right = x + 1;
    }
  }
  const [across, down] = [Math.max(0, right - left), Math.max(0, bottom - top)];
  const inside = new Uint8Array(across * down);
  for (let y = 0, at = 0; y < down; y++) {
    for (let x = 0; x < across; x++, at++) inside[at] = mask[atoms[(top + y) * width + left + x]];
  }
  return { width: across, height: down, inside };
}

/** Of a place: how deep it lies as a share of the deepest place, the logarithm of that one's depth, and by how many pixels it misses the middle. */
export function depthLooks(depth: number, greatest: number): [number, number, number] {
  const most = Math.max(greatest, 1);
  return [Math.min(depth / most, 1), Math.log(most), Math.min(most - depth, DEEPEST)];
}
