import { expect, test } from "vitest";
import { isEmpty } from "../src/mask";
import { encodeRle } from "../src/rle";
import { Upscale } from "../src/upscale";
import golden from "./upscale.golden.json";

function waves(side: number): Float32Array {
  return Float32Array.from({ length: side * side }, (_, at) => {
    const [i, j] = [Math.floor(at / side), at % side];
    return 3 * (Math.sin(i * 0.9 + 0.3) * Math.cos(j * 0.7) + 0.4 * Math.sin(i * j * 0.31)) - 1.2;
  });
}

test.each(golden)("logits become the engine's own mask at $width x $height", (expected) => {
  const size = { width: expected.width, height: expected.height };
  const { mask, stabilityScore } = new Upscale(size, expected.imageSize).enlarge(waves(expected.imageSize / 4));
  expect(encodeRle(mask, size).counts).toBe(expected.counts);
  expect(stabilityScore).toBeCloseTo(expected.stability, 6);
});

test("a mask of a few cells is the same in the window and in the whole image", () => {
  const size = { width: 225, height: 150 };
  const upscale = new Upscale(size, 256);
  const logits = new Float32Array(64 * 64).fill(-4);
  const everywhere = new Float32Array(64 * 64).fill(-0.5);
  for (const at of [64 * 10 + 12, 64 * 10 + 13, 64 * 41 + 63]) logits[at] = everywhere[at] = 6;
  const found = upscale.enlarge(logits);
  expect(found.mask.width * found.mask.height).toBeLessThan(225 * 150);
  expect(isEmpty(upscale.enlarge(new Float32Array(64 * 64).fill(-4)).mask)).toBe(true);
  expect(isEmpty(upscale.enlarge(everywhere).mask)).toBe(false);
});

test("logits in the padding are not seen", () => {
  const logits = new Float32Array(64 * 64).fill(-4);
  logits.fill(9, 64 * 50); // below the image, whose lowest cell is 42
  expect(isEmpty(new Upscale({ width: 225, height: 150 }, 256).enlarge(logits).mask)).toBe(true);
});
