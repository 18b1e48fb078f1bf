import { expect, test } from "vitest";
import { ClickScorer } from "../src/click_scorer";
import { inputSize } from "../src/geometry";
import { contains, isEmpty, subtract } from "../src/mask";
import { firstClick, type Prompt } from "../src/prompt";
import { encodeRle, type Size } from "../src/rle";
import { type Superpixels, superpixelsOf, Upscales } from "../src/snapped_upscale";
import { NUM_WEIGHTS, wavingScorer } from "./scorers";
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
  const tall = (row: number, count: number): number => Math.min(height, 9 * (row + count)) - 9 * row;
  const depth = (high: number, wide: number): number => Math.ceil(Math.min(high, wide) / 2);
  const depthAlone = (atom: number): number => {
    const [row, at] = [Math.floor(atom / across), atom % across];
    return depth(tall(row, 1), Math.max(0, Math.min(width, 7 * (at + 1)) - 7 * at));
  };
  return {
    width,
    height,
    atoms,
    segmentations: [each, each.map((atom) => Math.floor(atom / 3)), each.map(column)],
    unions,
    borders: Float32Array.from(each.slice(1), (atom) => 0.5 + 0.4 * Math.sin(atom)),
    depths: Float32Array.from([...Array.from(each, depthAlone), ...rows.map((_, row) => depth(tall(0, row + 1), width))]),
    clickScorer: wavingScorer(),
  };
}

/** Which the model alone answers, with its single output. */
const A_BOX: Prompt = { points: [], labels: [], box: [0, 0, 1, 1], maskInput: null, before: null };

const LOGITS: Record<string, (i: number, j: number, side: number) => number> = {
  waves: (i, j) => 3 * (Math.sin(i * 0.9 + 0.3) * Math.cos(j * 0.7) + 0.4 * Math.sin(i * j * 0.31)) - 1.2,
  blob: (i, j, side) => side / 5 - Math.hypot(i - side * 0.3, j - side * 0.4),
  stripes: (_i, j) => 3 * Math.sin(j * 0.37 + 0.2),
  nothing: () => -9,
};

function logitsOf(name: string, side: number): Float32Array {
  return Float32Array.from({ length: side * side }, (_, at) => LOGITS[name](Math.floor(at / side), at % side, side));
}

test.each(golden)("$logits become the engine's own mask of superpixels at $width x $height", (expected) => {
  const size = { width: expected.width, height: expected.height };
  const upscale = new Upscales(size, expected.imageSize, tiles(size)).of(true);
  const logits = logitsOf(expected.logits, expected.imageSize / 4);
  const { mask, stabilityScore } = upscale.enlarge(logits);
  expect(encodeRle(mask, size).counts).toBe(expected.counts);
  expect(stabilityScore).toBeCloseTo(expected.stability, 6);
  const [{ predictedIou }] = upscale.offer([{ logits, predictedIou: 0.7 }], A_BOX);
  expect(predictedIou).toBeCloseTo(expected.predictedIou, 6);
});

test.each(golden.filter(({ offered }) => offered))("clicks at $width x $height are offered what the engine offers", (expected) => {
  const size = { width: expected.width, height: expected.height };
  const upscale = new Upscales(size, expected.imageSize, tiles(size)).of(true);
  const outputs = ["blob", "waves", "blob", "nothing"].map((name, at) => ({
    logits: logitsOf(name, expected.imageSize / 4),
    predictedIou: [0.6, 0.7, 0.5, 0.3][at],
  }));
  const [first, second] = [[0.4, 0.3], [0.7, 0.6]].map(([x, y]) => ({ x: Math.floor(size.width * x), y: Math.floor(size.height * y) }));
  const before = upscale.enlarge(logitsOf("stripes", expected.imageSize / 4)).mask;
  const further = { box: null, maskInput: outputs[1].logits, before };
  const prompts: Prompt[] = [
    firstClick(first),
    { points: [first, second], labels: [1, 1], ...further },
    { points: [second, first], labels: [1, 0], ...further },
  ];
  const offers = prompts.flatMap((prompt) => upscale.offer(outputs, prompt));
  const made = offers.map(({ drawn, predictedIou, output }) => {
    const { mask, stabilityScore } = upscale.enlarge(drawn);
    return { counts: encodeRle(mask, size).counts, stability: stabilityScore, predictedIou, output };
  });
  expect(made).toEqual(
    expected.offered?.map(({ stability, predictedIou, ...exact }) => ({
      ...exact,
      stability: expect.closeTo(stability, 6) as number,
      predictedIou: expect.closeTo(predictedIou, 5) as number,
    })),
  );
});

test("a correction changes what is clicked, to the tile, and the rest not by a pixel", () => {
  const size = { width: 225, height: 150 };
  const upscale = new Upscales(size, 256, tiles(size)).of(true);
  const outputs = ["nothing", "nothing", "nothing", "nothing"].map((name) => ({ logits: logitsOf(name, 64), predictedIou: 0 }));
  const before = { x: 3, y: 40, width: 1, height: 70, bits: new Uint8Array(70).fill(1) };
  const click = { x: 150, y: 100 };
  const further = { box: null, maskInput: outputs[0].logits, before };
  const [added] = upscale.offer(outputs, { points: [{ x: 3, y: 50 }, click], labels: [1, 1], ...further });
  expect(added.output).toBeNull();
  const { mask } = upscale.enlarge(added.drawn);
  expect(contains(mask, click.x, click.y)).toBe(true);
  const left = [...Array(150).keys()].filter((y) => contains(mask, 3, y) && !contains(mask, 2, y));
  expect(left.length === 0 || left.every((y) => y >= 40 && y < 110)).toBe(true);
  expect(subtract(before, mask).bits.includes(1)).toBe(false);
  const [taken] = upscale.offer(outputs, { points: [click, { x: 3, y: 50 }], labels: [1, 0], ...further });
  expect(contains(upscale.enlarge(taken.drawn).mask, 3, 50)).toBe(false);
});

test("an answer without a pixel is an empty mask of no worth", () => {
  const size = { width: 60, height: 40 };
  const upscale = new Upscales(size, 128, tiles(size)).of(true);
  const nothing = logitsOf("nothing", 32);
  expect(isEmpty(upscale.enlarge(nothing).mask)).toBe(true);
  expect(upscale.offer([{ logits: nothing, predictedIou: 0.7 }], A_BOX)[0].predictedIou).toBe(0);
});

test("superpixels are read as the server packs them", () => {
  const weights = Float32Array.from({ length: NUM_WEIGHTS }, (_, at) => at);
  const integers = [2, 3, 2, 2, 1, 1, weights.length, 0, 0, 1, 1, 1, 0, 0, 1, 7, 7, 0, 2];
  const bytes = [Uint32Array.from(integers), Float32Array.from([0.25, 1.5]), weights].flatMap((part) => [...new Uint8Array(part.buffer)]);
  const packed = Uint8Array.from(bytes).buffer;
  expect(superpixelsOf(packed)).toEqual({
    height: 2,
    width: 3,
    atoms: Uint32Array.from([0, 0, 1, 1, 1, 0]),
    segmentations: [Uint32Array.from([0, 1]), Uint32Array.from([7, 7])],
    unions: Uint32Array.from([0, 2]),
    borders: Float32Array.from([0.25]),
    depths: Float32Array.from([1.5]),
    clickScorer: new ClickScorer(weights),
  });
  expect(() => superpixelsOf(packed.slice(0, -4))).toThrow("cut short");
});
