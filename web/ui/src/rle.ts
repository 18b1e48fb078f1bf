/**
 * COCO's compressed run-length encoding: runs of 0 and 1 in turn over the columns laid end to end.
 *
 * Each character holds five bits of a number, low ones first, and in its sixth bit whether more
 * follow; the last one's fifth bit is the sign. From the fourth run on, a run is stored as its
 * difference to the one before the last.
 */

import { EMPTY, type Mask } from "./mask";

export interface Rle {
  /** [height, width]. */
  size: [number, number];
  counts: string;
}

export interface Size {
  width: number;
  height: number;
}

export function encodeRle(mask: Mask, size: Size): Rle {
  return { size: [size.height, size.width], counts: compress(runsOf(mask, size)) };
}

/** Draws the runs into the smallest window of whole rows and columns that holds them. */
export function decodeRle(rle: Rle): Mask {
  const [height, width] = rle.size;
  const runs = decompress(rle.counts);
  const total = runs.reduce((sum, run) => sum + run, 0);
  if (total !== height * width || runs.some((run) => run < 0)) {
    throw new Error(`RLE runs sum to ${total}, expected ${height} x ${width} = ${height * width}`);
  }
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  forEachSegment(runs, height, (x, from, to) => {
    x0 = Math.min(x0, x);
    x1 = Math.max(x1, x + 1);
    y0 = Math.min(y0, from);
    y1 = Math.max(y1, to);
  });
  if (x1 <= x0) return EMPTY;
  const windowWidth = x1 - x0;
  const bits = new Uint8Array(windowWidth * (y1 - y0));
  forEachSegment(runs, height, (x, from, to) => {
    for (let y = from; y < to; y++) bits[(y - y0) * windowWidth + x - x0] = 1;
  });
  return { x: x0, y: y0, width: windowWidth, height: y1 - y0, bits };
}

/** Runs of 0 and 1 in turn, beginning with 0, without drawing the whole frame. */
export function runsOf(mask: Mask, size: Size): number[] {
  const runs: number[] = [];
  let value = 0; // of the run that is open
  let start = 0; // where it began
  for (let column = 0; column < mask.width; column++) {
    const offset = (mask.x + column) * size.height + mask.y;
    if (value && mask.y > 0) close(offset - mask.y);
    for (let row = 0, at = column; row < mask.height; row++, at += mask.width) {
      if (mask.bits[at] !== value) close(offset + row);
    }
    if (value && mask.y + mask.height < size.height) close(offset + mask.height);
  }
  if (value) close((mask.x + mask.width) * size.height);
  runs.push(size.width * size.height - start);
  if (runs.length > 1 && runs[runs.length - 1] === 0) runs.pop(); // the last pixel is mask
  return runs;

  function close(position: number): void {
    runs.push(position - start);
    start = position;
    value ^= 1;
  }
}

export function compress(runs: readonly number[]): string {
  const codes: number[] = [];
  for (let index = 0; index < runs.length; index++) {
    let rest = index > 2 ? runs[index] - runs[index - 2] : runs[index];
    for (let more = true; more; ) {
      let code = rest & 31;
      rest >>= 5;
      more = code & 16 ? rest !== -1 : rest !== 0;
      if (more) code |= 32;
      codes.push(code + 48);
    }
  }
  let text = "";
  for (let at = 0; at < codes.length; at += 4096) {
    text += String.fromCharCode(...codes.slice(at, at + 4096));
  }
  return text;
}

export function decompress(counts: string): number[] {
  const runs: number[] = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    for (let place = 0, more = true; more; place += 5) {
      const code = counts.charCodeAt(at++) - 48;
      if (!(code >= 0 && code < 64) || place > 25) throw new Error(`no RLE: ${counts.slice(0, 40)}`);
      value |= (code & 31) << place;
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << (place + 5);
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** Calls with each vertical piece of mask: column, first row, row after the last. */
function forEachSegment(
  runs: readonly number[],
  height: number,
  call: (x: number, from: number, to: number) => void,
): void {
  let position = 0;
  runs.forEach((run, index) => {
    const end = position + run;
    if (index % 2) {
      for (let at = position; at < end; ) {
        const x = Math.floor(at / height);
        const stop = Math.min(end, (x + 1) * height);
        call(x, at - x * height, stop - x * height);
        at = stop;
      }
    }
    position = end;
  });
}
