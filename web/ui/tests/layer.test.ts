import { expect, test } from "vitest";
import { changedBox, drawMasks, type LayerMask } from "../src/layer";
import { maskOf } from "./random";

const BLOCK = maskOf(["###", "###", "###"], { x: 1, y: 1 });
const item = (key: string, mask = BLOCK): LayerMask => ({ key, mask, colour: [255, 0, 0], striped: false });

test("only what changes is drawn again", () => {
  const other = item("b", maskOf(["##"], { x: 10, y: 12 }));
  expect(changedBox([item("a"), other], [item("a"), other])).toBeNull();
  expect(changedBox([item("a")], [item("a"), other])).toEqual({ x0: 10, y0: 12, x1: 12, y1: 13 });
  expect(changedBox([item("a"), other], [other])).toEqual({ x0: 1, y0: 1, x1: 4, y1: 4 });
  const moved = item("a", maskOf(["#"], { x: 6, y: 2 }));
  expect(changedBox([item("a")], [moved])).toEqual({ x0: 1, y0: 1, x1: 7, y1: 4 });
  expect(changedBox([item("a")], [{ ...item("a"), striped: true }])).not.toBeNull();
});

test("a mask is filled, outlined or darkened, also when only a part of it is drawn", () => {
  const large = item("a", maskOf(Array(7).fill("#######"), { x: 1, y: 1 }));
  const pixels = new Uint32Array(25);
  const box = { x0: 4, y0: 4, x1: 9, y1: 9 }; // the mask's centre is the first pixel
  const row = (): number[] => [...pixels.slice(0, 5)];
  const [fill, ink, line] = [((90 << 24) | 255) >>> 0, expect.any(Number), ((255 << 24) | 255) >>> 0];
  drawMasks([large], box, "filled", 1, pixels);
  expect(row()).toEqual([fill, fill, ink, line, 0]);
  expect([fill, line, 0]).not.toContain(pixels[2]); // ink lies within the line
  drawMasks([{ ...large, mask: { ...large.mask } }], box, "outlines", 1, pixels);
  expect(row()).toEqual([0, 0, ink, line, 0]);
  drawMasks([large], box, "uncovered", 1, pixels);
  expect(new Set(row().slice(0, 4)).size).toBe(1);
});
