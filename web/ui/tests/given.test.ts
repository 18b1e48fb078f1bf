import { expect, test } from "vitest";
import { givenLogits } from "../src/given";
import { EMPTY, iouOf, strokeMask } from "../src/mask";
import { Upscale } from "../src/upscale";

const SIZE = { width: 300, height: 200 };

test.each([
  ["a disc", [{ x: 120, y: 90 }], 40],
  ["a thick line at the edge", [{ x: 4, y: 195 }, { x: 290, y: 150 }], 12],
] as const)("the model is shown %s as it is", (_, points, radius) => {
  const mask = strokeMask(points, radius, SIZE);
  const again = new Upscale(SIZE, 256).enlarge(givenLogits(mask, SIZE, 256)).mask;
  expect(iouOf(mask, again)).toBeGreaterThan(0.9);
});

test("an image smaller than the model's input is no exception", () => {
  const size = { width: 40, height: 64 };
  const mask = strokeMask([{ x: 20, y: 30 }], 12, size);
  const again = new Upscale(size, 1024).enlarge(givenLogits(mask, size, 1024)).mask;
  expect(iouOf(mask, again)).toBeGreaterThan(0.95);
});

test("of nothing there is nothing", () => {
  expect(givenLogits(EMPTY, SIZE, 64).every((value) => value < 0)).toBe(true);
});
