import { expect, test } from "vitest";
import { inputSize } from "../src/geometry";
import { isEmpty } from "../src/mask";
import { encodeRle, type Size } from "../src/rle";
import { type Superpixels, superpixelsOf, Upscales } from "../src/snapped_upscale";
import golden from "./snapped_upscale.golden.json";

/** Tiles as atoms; as superpixels each tile alone, three in a row, two in a column; as unions each, and all rows down to each. */
function tiles(size: Size): Superpixels {
  const { width, height } = inputSize(size, 512);
  const across = Math.floor(width / 7) + 1;
  const atoms = Uint32Array.from({ length: width * height }, (_, at) => {
    const [x, y] = [at % width, Math.floor(at / width)];
    return Math.floor(y / 9) * across + Math.floor(x / 7);
  });
  const each = Uint32Array.from({ length: Math.max(...atoms.slice(-width)) + 1 }, (_, atom) => atom);
  const column = (atom: number): number => (atom % across) + Math.floor(Math.floor(atom / across) / 2) * across;
  const alone = Array.from(each, (atom) => [atom, atom + 1]);
  const rows = Array.from(each.slice(0, each.length / across), (row) => [0, (row + 1) * across]);
  const unions = Uint32Array.from([...alone, ...rows].flat());
  return { width, height, atoms, segmentations: [each, each.map((atom) => Math.floor(atom / 3)), each.map(column)], unions };
}

function logitsOf(name: string, side: number): Float32Array {
  return Float32Array.from({ length: side * side }, (_, at) => {
    const [i, j] = [Math.floor(at / side), at % side];
    return name === "waves"
      ? 3 * (Math.sin(i * 0.9 + 0.3) * Math.cos(j * 0.7) + 0.4 * Math.sin(i * j * 0.31)) - 1.2
      : side / 5 - Math.hypot(i - side * 0.3, j - side * 0.4);
  });
}

test.each(golden)("$logits become the engine's own mask of superpixels at $width x $height", (expected) => {
  const size = { width: expected.width, height: expected.height };
  const upscale = new Upscales(size, expected.imageSize, tiles(size)).of(true);
  const logits = logitsOf(expected.logits, expected.imageSize / 4);
  const { mask, stabilityScore } = upscale.enlarge(logits);
  expect(encodeRle(mask, size).counts).toBe(expected.counts);
  expect(stabilityScore).toBeCloseTo(expected.stability, 6);
  expect(upscale.predictedIou(0.7, logits)).toBeCloseTo(expected.predictedIou, 6);
});

test("an answer without a pixel is an empty mask of no worth", () => {
  const size = { width: 60, height: 40 };
  const upscale = new Upscales(size, 128, tiles(size)).of(true);
  const nothing = new Float32Array(32 * 32).fill(-9);
  expect(isEmpty(upscale.enlarge(nothing).mask)).toBe(true);
  expect(upscale.predictedIou(0.7, nothing)).toBe(0);
});

test("superpixels are read as the server packs them", () => {
  const packed = Uint32Array.from([2, 3, 2, 2, 1, 0, 0, 1, 1, 1, 0, 5, 6, 7, 7, 5, 7]);
  expect(superpixelsOf(packed.buffer)).toEqual({
    height: 2,
    width: 3,
    atoms: Uint32Array.from([0, 0, 1, 1, 1, 0]),
    segmentations: [Uint32Array.from([5, 6]), Uint32Array.from([7, 7])],
    unions: Uint32Array.from([5, 7]),
  });
  expect(() => superpixelsOf(packed.buffer.slice(0, -4))).toThrow("cut short");
});
