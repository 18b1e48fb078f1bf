/** Masks drawn one over the other into a piece of the image: colours only where a mask is. */

import { type Box, boxOf, type Mask, outline } from "./mask";

export type Colour = readonly [red: number, green: number, blue: number];

export interface LayerMask {
  /** The same key and mask look the same as long as `colour` and `striped` stay. */
  key: string;
  mask: Mask;
  colour: Colour;
  /** Locked masks are striped. */
  striped: boolean;
}

/** How masks are shown; `uncovered` darkens everything that has a mask. */
export type Show = "filled" | "outlines" | "uncovered";

const FILL_ALPHA = 90;
const COVERED = pack([14, 17, 22], 236);
/** Within the outline, so that it stands out from a ground of its own colour. */
const INK = pack([12, 15, 20], 170);
const STRIPE_PIXELS = 8;

/** Of each mask once: 1 on its outline, 2 on the ink within. They are what takes time. */
const outlines = new WeakMap<Mask, Uint8Array>();

function pack([red, green, blue]: Colour, alpha: number): number {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/**
 * Fills `pixels` (RGBA words of the box, rows first) with the masks, the last on top.
 *
 * `thickness`: of the outlines, in image pixels.
 */
export function drawMasks(
  masks: readonly LayerMask[],
  box: Box,
  show: Show,
  thickness: number,
  pixels: Uint32Array,
): void {
  pixels.fill(0);
  const width = box.x1 - box.x0;
  for (const { mask, colour, striped } of masks) {
    const x0 = Math.max(box.x0, mask.x);
    const x1 = Math.min(box.x1, mask.x + mask.width);
    const y0 = Math.max(box.y0, mask.y);
    const y1 = Math.min(box.y1, mask.y + mask.height);
    if (x0 >= x1 || y0 >= y1) continue;
    const edge = edgeOf(mask, thickness);
    const line = pack(colour, 255);
    const fill = show === "outlines" ? 0 : pack(colour, FILL_ALPHA);
    const gap = show === "outlines" ? 0 : pack(colour, FILL_ALPHA >> 2);
    for (let y = y0; y < y1; y++) {
      const from = (y - mask.y) * mask.width - mask.x;
      const to = (y - box.y0) * width - box.x0;
      for (let x = x0; x < x1; x++) {
        if (!mask.bits[from + x]) continue;
        if (show === "uncovered") pixels[to + x] = COVERED;
        else if (edge[from + x]) pixels[to + x] = edge[from + x] === 1 ? line : INK;
        else if (fill) pixels[to + x] = striped && ((x + y) / STRIPE_PIXELS) & 1 ? gap : fill;
      }
    }
  }
}

/** What looks different between two lists of masks; null when nothing does. */
export function changedBox(before: readonly LayerMask[], after: readonly LayerMask[]): Box | null {
  const old = new Map(before.map((item) => [item.key, item]));
  const boxes: Box[] = [];
  for (const item of after) {
    const was = old.get(item.key);
    if (was && was.mask === item.mask && sameColour(was, item)) {
      old.delete(item.key);
      continue;
    }
    boxes.push(boxOf(item.mask));
  }
  for (const item of old.values()) boxes.push(boxOf(item.mask));
  const drawn = boxes.filter((box) => box.x1 > box.x0);
  if (drawn.length === 0) return null;
  return {
    x0: Math.min(...drawn.map((box) => box.x0)),
    y0: Math.min(...drawn.map((box) => box.y0)),
    x1: Math.max(...drawn.map((box) => box.x1)),
    y1: Math.max(...drawn.map((box) => box.y1)),
  };
}

/** Colours far from each other for masks one after the other. */
export function colourOf(index: number): Colour {
  const hue = (index * 137.508 + 20) % 360;
  const channel = (offset: number): number => {
    const place = (offset + hue / 30) % 12;
    return Math.round(255 * (0.58 - 0.42 * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

function sameColour(a: LayerMask, b: LayerMask): boolean {
  return a.striped === b.striped && a.colour.every((value, at) => value === b.colour[at]);
}

function edgeOf(mask: Mask, thickness: number): Uint8Array {
  const known = outlines.get(mask);
  if (known) return known;
  const [line, withInk] = [outline(mask, thickness), outline(mask, 2 * thickness)];
  const edge = withInk.map((isEdge, at) => (line[at] ? 1 : 2 * isEdge));
  outlines.set(mask, edge);
  return edge;
}
