/**
 * Masks held as windows: the part of the image that may hold mask pixels, one byte a pixel, rows first.
 *
 * A mask in the making is seldom as large as its photograph, and each step of its history keeps one.
 */

export interface Mask {
  /** Of the window's top left pixel, in the image. */
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  /** width * height of 0 or 1, rows first. */
  readonly bits: Uint8Array;
}

/** Pixels, ends exclusive. */
export interface Box {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
}

export const EMPTY: Mask = { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };

export function boxOf(mask: Mask): Box {
  return { x0: mask.x, y0: mask.y, x1: mask.x + mask.width, y1: mask.y + mask.height };
}

/** What two boxes share; without any width or height when they share nothing. */
export function common(a: Box, b: Box): Box {
  const [x0, y0] = [Math.max(a.x0, b.x0), Math.max(a.y0, b.y0)];
  return { x0, y0, x1: Math.max(x0, Math.min(a.x1, b.x1)), y1: Math.max(y0, Math.min(a.y1, b.y1)) };
}

export function isEmpty(mask: Mask): boolean {
  return mask.bits.indexOf(1) < 0;
}

export function area(mask: Mask): number {
  let count = 0;
  for (const bit of mask.bits) count += bit;
  return count;
}

/** Share of a mask's pixels that lie in a box; 1 for an empty mask. */
export function shareWithin(mask: Mask, box: Box): number {
  const { x0, y0, x1, y1 } = common(boxOf(mask), box);
  let inside = 0;
  for (let y = y0; y < y1; y++) {
    const row = (y - mask.y) * mask.width - mask.x;
    for (let x = x0; x < x1; x++) inside += mask.bits[row + x];
  }
  return inside / Math.max(1, area(mask)) || Number(isEmpty(mask));
}

export function contains(mask: Mask, x: number, y: number): boolean {
  const column = Math.floor(x) - mask.x;
  const row = Math.floor(y) - mask.y;
  if (column < 0 || row < 0 || column >= mask.width || row >= mask.height) return false;
  return mask.bits[row * mask.width + column] === 1;
}

export function union(first: Mask, second: Mask): Mask {
  if (first.bits.length === 0) return second;
  if (second.bits.length === 0) return first;
  const x = Math.min(first.x, second.x);
  const y = Math.min(first.y, second.y);
  const width = Math.max(first.x + first.width, second.x + second.width) - x;
  const height = Math.max(first.y + first.height, second.y + second.height) - y;
  const bits = new Uint8Array(width * height);
  for (let row = 0; row < first.height; row++) {
    const from = row * first.width;
    const to = (first.y + row - y) * width + first.x - x;
    bits.set(first.bits.subarray(from, from + first.width), to);
  }
  for (let row = 0; row < second.height; row++) {
    const from = row * second.width;
    const to = (second.y + row - y) * width + second.x - x;
    for (let column = 0; column < second.width; column++) bits[to + column] |= second.bits[from + column];
  }
  return { x, y, width, height, bits };
}

/** The pixels of `first` that are not in `second`. */
export function subtract(first: Mask, second: Mask): Mask {
  const bits = first.bits.slice();
  const x0 = Math.max(first.x, second.x);
  const x1 = Math.min(first.x + first.width, second.x + second.width);
  const y0 = Math.max(first.y, second.y);
  const y1 = Math.min(first.y + first.height, second.y + second.height);
  for (let y = y0; y < y1; y++) {
    const here = (y - first.y) * first.width - first.x;
    const there = (y - second.y) * second.width - second.x;
    for (let x = x0; x < x1; x++) if (second.bits[there + x]) bits[here + x] = 0;
  }
  return { ...first, bits };
}

/** The same mask in the smallest window that holds it. */
export function trim(mask: Mask): Mask {
  let left = mask.width;
  let right = -1;
  let top = -1;
  let bottom = -1;
  for (let row = 0; row < mask.height; row++) {
    const line = mask.bits.subarray(row * mask.width, (row + 1) * mask.width);
    const first = line.indexOf(1);
    if (first < 0) continue;
    if (top < 0) top = row;
    bottom = row;
    left = Math.min(left, first);
    right = Math.max(right, line.lastIndexOf(1));
  }
  if (top < 0) return EMPTY;
  const width = right - left + 1;
  const height = bottom - top + 1;
  if (width === mask.width && height === mask.height) return mask;
  const bits = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    const from = (top + row) * mask.width + left;
    bits.set(mask.bits.subarray(from, from + width), row * width);
  }
  return { x: mask.x + left, y: mask.y + top, width, height, bits };
}

/** 1 where a mask pixel lies within `thickness` of one that is not mask; the window's size and place. */
export function outline(mask: Mask, thickness: number): Uint8Array {
  const { width, height, bits } = mask;
  const edge = new Uint8Array(bits.length);
  let inner = bits;
  for (let step = 0; step < thickness; step++) {
    const next = new Uint8Array(bits.length);
    for (let y = 1; y < height - 1; y++) {
      for (let at = y * width + 1; at < (y + 1) * width - 1; at++) {
        next[at] = inner[at] & inner[at - 1] & inner[at + 1] & inner[at - width] & inner[at + width];
      }
    }
    inner = next;
  }
  for (let at = 0; at < bits.length; at++) edge[at] = bits[at] & (inner[at] ^ 1);
  return edge;
}

/** Rounding moves the edge of a stroke by less, pixels: only what lies nearer to it is looked at one by one. */
const DOUBT = 1e-3;

/** Every pixel whose centre lies within `radius` of the line through these points. */
export function strokeMask(
  points: readonly { x: number; y: number }[],
  radius: number,
  size: { width: number; height: number },
): Mask {
  if (points.length === 0) return EMPTY;
  const [x0, x1] = reached(points.map(({ x }) => x), radius, size.width);
  const [y0, y1] = reached(points.map(({ y }) => y), radius, size.height);
  if (x1 <= x0 || y1 <= y0) return EMPTY;
  const [width, height] = [x1 - x0, y1 - y0];
  const bits = new Uint8Array(width * height);
  // Of each row, a run that is painted already: the next point of a stroke mostly adds little to it.
  const [runStart, runEnd] = [new Int32Array(height), new Int32Array(height)];
  for (let index = 0; index < points.length; index++) {
    drawSegment(points[Math.max(index - 1, 0)], points[index]);
  }
  return trim({ x: x0, y: y0, width, height, bits });

  function drawSegment(a: { x: number; y: number }, b: { x: number; y: number }): void {
    const [dx, dy] = [b.x - a.x, b.y - a.y];
    const squared = dx * dx + dy * dy;
    const lean = (Math.sign(dy) * dx) / Math.sqrt(squared || 1);
    const top = Math.max(y0, Math.floor(Math.min(a.y, b.y) - radius));
    const bottom = Math.min(y1, Math.ceil(Math.max(a.y, b.y) + radius) + 1);
    for (let y = top; y < bottom; y++) {
      const row = y - y0;
      const [start, end] = [startOf(y, radius + DOUBT), endOf(y, radius + DOUBT)];
      if (!(start < end) || (start >= runStart[row] && end <= runEnd[row])) continue;
      const [sureStart, sureEnd] = [startOf(y, radius - DOUBT), endOf(y, radius - DOUBT)];
      const at = row * width - x0;
      for (let x = start; x < end; x++) {
        if (x >= sureStart && x < sureEnd) {
          bits.fill(1, at + x, at + sureEnd);
          x = sureEnd - 1;
        } else if (isPainted(x, y)) bits[at + x] = 1;
      }
      if (!(sureStart < sureEnd)) continue;
      const isLonger = sureStart <= runEnd[row] && sureEnd >= runStart[row];
      runStart[row] = isLonger ? Math.min(runStart[row], sureStart) : sureStart;
      runEnd[row] = isLonger ? Math.max(runEnd[row], sureEnd) : sureEnd;
    }

    function startOf(y: number, reach: number): number {
      return Math.max(x0, Math.ceil(outermost(-1, y, reach) - 0.5));
    }

    function endOf(y: number, reach: number): number {
      return Math.min(x1, Math.floor(outermost(1, y, reach) + 0.5));
    }

    /** Where the middle of a row lies last within `reach` to the left (-1) or right (1); NaN if it never does. */
    function outermost(side: number, y: number, reach: number): number {
      const py = y + 0.5 - a.y;
      // The circle on the segment that goes furthest; there its edge runs as the segment does.
      const along = dy ? Math.min(1, Math.max(0, (py + side * reach * lean) / dy)) : Number(side * dx > 0);
      const ey = py - along * dy;
      return a.x + along * dx + side * Math.sqrt(reach * reach - ey * ey);
    }

    function isPainted(x: number, y: number): boolean {
      const [px, py] = [x + 0.5 - a.x, y + 0.5 - a.y];
      const along = squared ? Math.min(1, Math.max(0, (px * dx + py * dy) / squared)) : 0;
      const [ex, ey] = [px - along * dx, py - along * dy];
      return ex * ex + ey * ey <= radius * radius;
    }
  }
}

/** From where to where, end exclusive, pixels of a side lie within `radius` of these places; there may be 100,000. */
function reached(places: readonly number[], radius: number, side: number): [number, number] {
  const first = places.reduce((a, b) => Math.min(a, b));
  const last = places.reduce((a, b) => Math.max(a, b));
  return [Math.max(0, Math.floor(first - radius)), Math.min(side, Math.ceil(last + radius) + 1)];
}

/** 1 for two empty masks. */
export function iouOf(first: Mask, second: Mask): number {
  const shared = area(first) - area(subtract(first, second));
  const either = area(first) + area(second) - shared;
  return either ? shared / either : 1;
}
