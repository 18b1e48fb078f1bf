import { type Mask, trim } from "../src/mask";
import type { Size } from "../src/rle";

/** Numbers in [0, 1) that are the same in every run (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Some rectangles and loose pixels. */
export function randomMask(random: () => number, size: Size): Mask {
  const bits = new Uint8Array(size.width * size.height);
  for (let count = Math.floor(random() * 4); count > 0; count--) {
    const x0 = Math.floor(random() * size.width);
    const y0 = Math.floor(random() * size.height);
    const x1 = x0 + Math.ceil(random() * (size.width - x0));
    const y1 = y0 + Math.ceil(random() * (size.height - y0));
    for (let y = y0; y < y1; y++) bits.fill(1, y * size.width + x0, y * size.width + x1);
  }
  for (let count = Math.floor(random() * 20); count > 0; count--) {
    bits[Math.floor(random() * bits.length)] ^= 1;
  }
  return trim({ x: 0, y: 0, ...size, bits });
}

/** The mask drawn out over the whole image, rows first. */
export function whole(mask: Mask, size: Size): number[] {
  const pixels = new Array<number>(size.width * size.height).fill(0);
  for (let y = 0; y < mask.height; y++) {
    for (let x = 0; x < mask.width; x++) {
      pixels[(mask.y + y) * size.width + mask.x + x] = mask.bits[y * mask.width + x];
    }
  }
  return pixels;
}

export function maskOf(rows: string[], at = { x: 0, y: 0 }): Mask {
  const bits = Uint8Array.from(rows.join(""), (letter) => (letter === "#" ? 1 : 0));
  return { ...at, width: rows[0].length, height: rows.length, bits };
}
