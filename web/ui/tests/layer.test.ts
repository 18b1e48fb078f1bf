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
  const pixels = new Uint32Array(9);
  const box = { x0: 2, y0: 2, x1: 5, y1: 5 }; // the mask's centre is the first pixel
  drawMasks([item("a")], box, "filled", 1, pixels);
  expect(pixels[0]).toBe(((110 << 24) | 255) >>> 0);
  expect(pixels[1]).toBe(((255 << 24) | 255) >>> 0);
  expect(pixels[2]).toBe(0);
  drawMasks([item("a")], box, "outlines", 1, pixels);
  expect([pixels[0], pixels[1] > 0]).toEqual([0, true]);
  drawMasks([item("a")], box, "uncovered", 1, pixels);
  expect(pixels[0]).toBe(pixels[1]);
});
