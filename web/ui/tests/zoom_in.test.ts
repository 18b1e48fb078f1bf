import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { MaskPayload } from "../src/api";
import { type Box, boxOf, type Mask } from "../src/mask";
import { type Answer, type ModelPrompt, type Near, type Prompt, toModel } from "../src/prompt";
import { MaskSession } from "../src/session";
import { Upscales } from "../src/snapped_upscale";
import type { Enlarges } from "../src/upscale";
import { drawnAgain, within, ZoomIn } from "../src/zoom_in";

const SIZE = { width: 96, height: 96 };
const SIDE = 24; // of the logits: each cell is four image pixels wide
const CELLS = SIDE ** 2;
const upscales = new Upscales(SIZE, 4 * SIDE, null);
const plain = upscales.of(false);
/** Around a click at 48, 48. */
const CROP = { x0: 32, y0: 32, x1: 64, y1: 64 };

/** Four outputs: squares of so many cells around the middle. */
function squares(...halfSides: number[]): Float32Array {
  const logits = new Float32Array(4 * CELLS).fill(-10);
  halfSides.forEach((half, channel) => {
    for (let row = 12 - half; row < 12 + half; row++) {
      logits.fill(10, channel * CELLS + row * SIDE + 12 - half, channel * CELLS + row * SIDE + 12 + half);
    }
  });
  return logits;
}

/** The single output and the third of three fit into the crop. */
const FAR: Answer = { lowResMasks: squares(1, 11, 8, 2), predictedIou: [0.5, 0.6, 0.7, 0.8] };

let asked: { crop: Box; prompt: ModelPrompt }[];
let prompts: Prompt[];

function near(crop: Box): Near {
  return { crop, lowResMasks: squares(6, 6, 6, 6), predictedIou: [0.91, 0.92, 0.93, 0.94], carried: squares(2, 2, 2, 2), superpixels: null };
}

function begin(look: (crop: Box) => Promise<Near> = async (crop) => near(crop)): MaskSession {
  const zoom = new ZoomIn(SIZE, (crop, prompt) => {
    asked.push({ crop, prompt });
    return look(crop);
  });
  return new MaskSession(
    "id",
    upscales,
    () => false,
    async (prompt, { zoomsIn, known }) => {
      prompts.push(prompt);
      const far = known ?? FAR;
      return zoomsIn === false ? far : zoom.look(prompt, far, plain, zoomsIn === true);
    },
    () => 0,
  );
}

beforeEach(() => {
  asked = [];
  prompts = [];
  vi.spyOn(console, "warn").mockImplementation(() => {});
});

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

test("what fits into the crop is drawn from nearer, the rest as before", async () => {
  const session = begin();
  await session.click({ x: 48, y: 48 }, 1);
  expect(asked.map(({ crop }) => crop)).toEqual([CROP]);
  expect(asked[0].prompt).toEqual(
    toModel({ points: [{ x: 16, y: 16 }], labels: [1], box: null, maskInput: null, before: null }, { width: 32, height: 32 }, 96),
  );
  expect(session.choices).toEqual([0.6, 0.7, 0.94]);
  expect(boxOf(session.mask)).toEqual({ x0: 40, y0: 40, x1: 56, y1: 56 }); // half of the crop
  session.choose(1);
  expect(boxOf(session.mask)).toEqual({ x0: 16, y0: 16, x1: 80, y1: 80 });
  session.choose(2);
  expect(boxOf(session.mask)).toEqual({ x0: 40, y0: 40, x1: 56, y1: 56 });
  expect(session.record()?.predicted_iou).toBe(0.94);
});

test("the next prompt is shown the answer as the whole image has it", async () => {
  const session = begin();
  await session.click({ x: 48, y: 48 }, 1);
  await session.click({ x: 50, y: 50 }, 0);
  expect(prompts[1].maskInput).toEqual(squares(2).slice(0, CELLS));
  expect(asked[1].crop).toEqual(CROP);
  expect(asked[1].prompt.maskInput).toBe(prompts[1].maskInput);
  expect(session.predictedIou).toBe(0.91);
});

test("clicks beyond the crop: one that adds forbids a second look, one that removes does not count in it", async () => {
  const session = begin();
  await session.click({ x: 48, y: 48 }, 1);
  await session.click({ x: 5, y: 5 }, 0);
  expect(asked[1].prompt.pointLabels).toEqual([1, -1]);
  await session.click({ x: 90, y: 90 }, 1);
  expect(asked.length).toBe(2);
  expect(session.predictedIou).toBe(0.5);
});

test("in the crop's frame a click beyond it is left out, and the model alone answers", () => {
  const before: Mask = { x: 40, y: 44, width: 2, height: 1, bits: Uint8Array.of(1, 1) };
  const asked: Prompt = { points: [{ x: 48, y: 49 }, { x: 5, y: 5 }], labels: [1, 0], box: null, maskInput: null, before };
  expect(within(asked, CROP)).toEqual({ points: [{ x: 16, y: 17 }], labels: [1], box: null, maskInput: null, before: null });
});

test("masks of superpixels are drawn again as those most like them, the model's by their number", () => {
  const square = (side: number): Mask => ({ x: 40, y: 44, width: side, height: side, bits: new Uint8Array(side * side).fill(1) });
  const [far, near] = [[20, 12, 5], [6, 13, 9]].map((sides) => sides.map(square));
  expect(drawnAgain(far, [true, true, true], near, true)).toEqual([1, 2, 0]);
  expect(drawnAgain(far, [false, false, true], near, true)).toEqual([null, null, 0]);
  expect(drawnAgain(far, [false, true, true], near, false)).toEqual([null, 1, 2]);
  const nothing = square(0); // two of them are alike, as the engine has it
  expect(drawnAgain([square(20), nothing, nothing], [false, true, true], [square(6), square(13), nothing], true)).toEqual([null, 2, 0]);
});

test("a mask made with regions by a click beyond the crop stands", async () => {
  const zoom = new ZoomIn(SIZE, async (crop) => near(crop));
  const drawn = FAR.lowResMasks.slice(0, CELLS);
  const made = (output: number | null): Enlarges => ({ side: SIDE, enlarge: plain.enlarge.bind(plain), offer: () => [{ drawn, predictedIou: 0.5, output }] });
  const prompt: Prompt = { points: [{ x: 48, y: 48 }, { x: 5, y: 5 }], labels: [1, 0], box: null, maskInput: drawn, before: null };
  expect((await zoom.look(prompt, FAR, made(null))).near).toBeUndefined();
  expect((await zoom.look(prompt, FAR, made(0))).near).toBeDefined();
});

test("a box is looked at from its middle, and not at all when it reaches out of the crop", async () => {
  await begin().dragBox([40, 44, 55, 51]);
  expect(asked[0].crop).toEqual(CROP);
  expect(asked[0].prompt.pointLabels).toEqual([2, 3]);
  await begin().dragBox([20, 44, 75, 51]);
  expect(asked.length).toBe(1);
});

test("the log says which answers were looked at twice, and they are taken up again so", async () => {
  const session = begin();
  await session.click({ x: 48, y: 48 }, 1);
  await session.click({ x: 90, y: 90 }, 1); // beyond the crop
  const saved = session.record() as MaskPayload;
  expect(saved.interactions.map((action) => action.zoomed_in)).toEqual([true, false]);
  const unseen = { ...saved, interactions: saved.interactions.map((action) => ({ ...action, zoomed_in: false })) };
  const again = await MaskSession.resume(unseen, begin());
  again.undo();
  expect(again.choices).toEqual([0.6, 0.7, 0.8]);
  asked = [];
  expect((await MaskSession.resume(saved, begin())).record()).toEqual(saved);
  expect(asked.length).toBe(1); // of the first alone
  const failing = begin(() => Promise.reject(new Error("the server cannot be reached")));
  await expect(MaskSession.resume(saved, failing)).rejects.toThrow("cannot be reached");
});

test("large answers ask for no second look", async () => {
  const zoom = new ZoomIn(SIZE, () => Promise.reject(new Error("not asked for")));
  const large = { ...FAR, lowResMasks: squares(9, 11, 8, 6) };
  const prompt = { points: [{ x: 48, y: 48 }], labels: [1], box: null, maskInput: null, before: null };
  expect(await zoom.look(prompt, large, plain)).toBe(large);
});

test("a second look that fails or is late leaves the first answer", async () => {
  const failing = begin(() => Promise.reject(new Error("the server cannot be reached")));
  await failing.click({ x: 48, y: 48 }, 1);
  expect(failing.choices).toEqual([0.6, 0.7, 0.8]);
  vi.useFakeTimers();
  const late = begin(() => new Promise(() => {}));
  const clicked = late.click({ x: 48, y: 48 }, 1);
  await vi.advanceTimersByTimeAsync(5_000);
  await clicked;
  expect(late.choices).toEqual([0.6, 0.7, 0.8]);
});
