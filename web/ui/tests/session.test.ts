import { beforeEach, describe, expect, test } from "vitest";
import { area, strokeMask } from "../src/mask";
import type { Answer, Prompt } from "../src/prompt";
import { toModel } from "../src/prompt";
import type { MaskPayload } from "../src/api";
import { decodeRle, encodeRle } from "../src/rle";
import { MaskSession } from "../src/session";
import { type Superpixels, Upscales } from "../src/snapped_upscale";
import { maskOf, whole } from "./random";
import { trustingScorer } from "./scorers";

const SIZE = { width: 32, height: 32 };
const SIDE = 8; // of the logits: each of their cells is four pixels wide

/** Answers with bands at the image's top: output 0 is 4 cells high, then 2, 4 and 6. */
function bands(asked: Prompt[] = []): (prompt: Prompt) => Promise<Answer> {
  return async (prompt) => {
    asked.push(prompt);
    const lowResMasks = new Float32Array(4 * SIDE * SIDE).fill(-10);
    [4, 2, 4, 6].forEach((rows, channel) => {
      const start = channel * SIDE * SIDE;
      lowResMasks.fill(10, start, start + rows * SIDE);
    });
    return { lowResMasks, predictedIou: [0.5, 0.7, 0.9, 0.8] };
  };
}

function begin(asked: Prompt[] = [], clock = () => 0): MaskSession {
  return new MaskSession("id", new Upscales(SIZE, 32, null), () => true, bands(asked), clock);
}

describe("a mask in the making", () => {
  test("a first click offers three outputs and takes the surest", async () => {
    const asked: Prompt[] = [];
    const session = begin(asked);
    await session.click({ x: 5, y: 6 }, 1);
    expect(session.choices).toEqual([0.7, 0.9, 0.8]);
    expect(session.chosen).toBe(1);
    expect(area(session.mask)).toBe(16 * 32);
    expect(asked[0].maskInput).toBeNull();
    expect(asked[0].before).toBeNull();
    expect(session.choose(2)).toBe(true);
    expect(area(session.mask)).toBe(24 * 32);
    expect(session.predictedIou).toBe(0.8);
  });

  test("later prompts get the single output and are shown the chosen answer", async () => {
    const asked: Prompt[] = [];
    const session = begin(asked);
    await session.click({ x: 5, y: 6 }, 1);
    session.choose(0);
    const before = session.mask;
    await session.click({ x: 9, y: 6 }, 0);
    expect(asked[1].labels).toEqual([1, 0]);
    expect(asked[1].before).toBe(before);
    expect(asked[1].maskInput?.filter((logit) => logit > 0).length).toBe(2 * SIDE);
    expect(session.choices).toEqual([]);
    expect(session.choose(1)).toBe(false);
    await session.dragBox([1, 2, 3, 4]);
    expect(asked[2].points.length).toBe(2);
    expect(asked[2].box).toEqual([1, 2, 3, 4]);
    expect(asked[2].before).toBeNull();
    expect(session.record()?.interactions.map((action) => action.output)).toEqual([0, 0, 0]);
  });

  test("a box gets the single output", async () => {
    const session = begin();
    await session.dragBox([0, 0, 9, 9]);
    expect(session.choices).toEqual([]);
    expect(session.predictedIou).toBe(0.5);
  });

  test("strokes have the last word, also over later clicks and choices", async () => {
    const session = begin();
    await session.click({ x: 0, y: 0 }, 1);
    session.brush(maskOf(["##"], { x: 30, y: 31 }), 1);
    session.brush(maskOf(["#"], { x: 0, y: 0 }), 0);
    session.choose(2);
    const at = (x: number, y: number): number => whole(session.mask, SIZE)[y * SIZE.width + x];
    expect([at(30, 31), at(0, 0), at(1, 0)]).toEqual([1, 0, 1]);
    await session.click({ x: 1, y: 1 }, 1);
    expect([at(30, 31), at(0, 0)]).toEqual([1, 0]);
    session.brush(maskOf(["#"], { x: 30, y: 31 }), 0);
    session.brush(maskOf(["#"], { x: 0, y: 0 }), 1);
    await session.click({ x: 2, y: 1 }, 1);
    expect([at(30, 31), at(31, 31), at(0, 0)]).toEqual([0, 1, 1]);
  });

  test("undo and redo go over clicks and strokes and ask nothing", async () => {
    const asked: Prompt[] = [];
    const session = begin(asked);
    await session.click({ x: 0, y: 0 }, 1);
    session.brush(maskOf(["#"], { x: 31, y: 31 }), 1);
    await session.click({ x: 1, y: 1 }, 1);
    const areas = [area(session.mask)];
    while (session.undo()) areas.push(area(session.mask));
    expect(areas).toEqual([513, 513, 512, 0]);
    while (session.redo());
    expect(area(session.mask)).toBe(areas[0]);
    expect(asked.length).toBe(2);
  });

  test("the log tells every action, its answer and its time", async () => {
    let now = 10;
    const session = begin([], () => now);
    now = 12;
    await session.click({ x: 3, y: 4 }, 1);
    now = 15.5;
    session.brush(maskOf(["#.", "##"], { x: 30, y: 30 }), 1);
    now = 17;
    const record = session.record();
    expect(record?.seconds).toBe(7);
    const [click, stroke] = record?.interactions ?? [];
    expect(click).toMatchObject({ kind: "point", coords: [3, 4], label: 1, output: 1, seconds: 2, predicted_iou: 0.9, stroke: null });
    expect(stroke).toMatchObject({ kind: "brush", coords: [30, 30, 31, 31], label: 1, output: null, seconds: 3.5, predicted_iou: null });
    expect(stroke.answer).toEqual(record?.segmentation);
    expect(stroke.stroke && area(decodeRle(stroke.stroke))).toBe(3);
    expect(record?.stability_score).toBeGreaterThan(0.5);
  });

  test("a saved mask is taken up again with its whole history", async () => {
    const first = begin();
    await first.click({ x: 3, y: 4 }, 1);
    first.choose(2);
    first.brush(maskOf(["#"], { x: 31, y: 31 }), 1);
    await first.click({ x: 9, y: 9 }, 1);
    const saved = first.record();
    if (!saved) throw new Error("nothing to save");
    const session = await MaskSession.resume(saved, begin());
    expect(session.record()?.interactions).toEqual(saved.interactions);
    session.undo();
    session.undo();
    expect(session.choices.length).toBe(3);
    expect(session.chosen).toBe(2);
  });

  test("a mask that the model made alone is corrected by clicks and strokes", async () => {
    const base = encodeRle(strokeMask([{ x: 16, y: 16 }], 64, SIZE), SIZE);
    const saved = { segmentation: base, predicted_iou: 0.6, stability_score: 0.9, seconds: 0, interactions: [] };
    const asked: Prompt[] = [];
    const session = await MaskSession.resume(saved, begin(asked), base);
    expect([session.isEmpty, session.actions.length, session.predictedIou]).toEqual([false, 0, 0.6]);
    expect(area(session.mask)).toBe(32 * 32);
    session.brush(maskOf(["##"], { x: 3, y: 31 }), 0);
    expect(area(session.mask)).toBe(32 * 32 - 2);
    await session.click({ x: 3, y: 30 }, 0);
    expect(asked[0].maskInput?.every((logit) => logit > 0)).toBe(true);
    expect(session.choices).toEqual([]);
    const record = session.record();
    expect(record?.interactions.map((action) => action.kind)).toEqual(["brush", "point"]);
    const again = await MaskSession.resume(record as MaskPayload, begin(), base);
    expect(encodeRle(again.mask, SIZE)).toEqual(record?.segmentation);
    while (again.undo());
    expect([area(again.mask), again.isEmpty]).toEqual([32 * 32, false]);
  });

  test("an empty mask, or one that no prompt made, is not saved", async () => {
    const session = begin();
    expect(session.record()).toBeNull();
    session.brush(maskOf(["#"]), 1);
    expect(session.record()).toBeNull();
    await session.click({ x: 3, y: 4 }, 1);
    session.brush({ x: 0, y: 0, ...SIZE, bits: new Uint8Array(1024).fill(1) }, 0);
    expect(session.record()).toBeNull();
  });
});

describe("masks of superpixels", () => {
  /** The image's upper 14 rows, and the others. */
  const halves: Superpixels = {
    ...SIZE,
    atoms: Uint32Array.from({ length: 32 * 32 }, (_, at) => Number(at >= 14 * 32)),
    segmentations: [Uint32Array.from([0, 1])],
    unions: Uint32Array.from([0, 1, 1, 2, 0, 2]),
    borders: Float32Array.from([0.7]),
    depths: Float32Array.from([7, 9, 16]),
    clickScorer: trustingScorer(),
  };
  let snaps: boolean;

  const begun = (superpixels: Superpixels | null = halves): MaskSession =>
    new MaskSession("id", new Upscales(SIZE, 32, superpixels), () => snaps, bands(), () => 0);
  const said = (session: MaskSession): (boolean | null)[] | undefined =>
    session.record()?.interactions.map((action) => action.snapped);

  beforeEach(() => {
    snaps = true;
  });

  test("are the model's own when the annotator wants that, under the same strokes", async () => {
    const session = begun();
    await session.click({ x: 3, y: 4 }, 1);
    session.brush(maskOf(["#"], { x: 31, y: 31 }), 1);
    expect(area(session.mask)).toBe(14 * 32 + 1);
    snaps = false;
    expect(session.redraw()).toBe(true);
    expect([area(session.mask), session.chosen, session.predictedIou]).toEqual([16 * 32 + 1, 1, 0.9]);
    expect(said(session)).toEqual([false, null]);
    await session.click({ x: 5, y: 5 }, 1);
    snaps = true;
    session.redraw();
    expect(area(session.mask)).toBe(14 * 32 + 1);
    expect(said(session)).toEqual([false, null, true]);
    session.undo();
    expect(area(session.mask)).toBe(16 * 32 + 1);
    snaps = false;
    expect([session.redraw(), session.canRedo]).toEqual([false, true]); // it is so already
  });

  test("are taken up again as they were made, whatever is wanted now", async () => {
    const first = begun();
    await first.click({ x: 3, y: 4 }, 1);
    const saved = first.record() as MaskPayload;
    snaps = false;
    const session = await MaskSession.resume(saved, begun());
    expect(session.record()).toEqual(saved);
    session.choose(0);
    expect([session.choose(1), area(session.mask)]).toEqual([true, 14 * 32]);
    expect(said(session)).toEqual([true]);
  });

  test("are logged as they were, as long as they are as they were", async () => {
    const first = begun();
    await first.click({ x: 3, y: 4 }, 1);
    const saved = first.record() as MaskPayload;
    const unsaid = { ...saved, interactions: saved.interactions.map((one) => ({ ...one, snapped: null, zoomed_in: null })) };
    expect((await MaskSession.resume(unsaid, begun())).record()).toEqual(unsaid);
    const session = await MaskSession.resume(saved, begun(null)); // its superpixels cannot be had
    expect(session.record()).toEqual(saved);
    session.choose(0);
    expect([area(session.mask), said(session)?.[0]]).toEqual([8 * 32, false]);
  });

  test("there are none without superpixels, nor of what no prompt made", async () => {
    const session = begun(null);
    expect(session.redraw()).toBe(false);
    await session.click({ x: 3, y: 4 }, 1);
    expect(area(session.mask)).toBe(16 * 32);
    expect(said(session)).toEqual([false]);
  });
});

test("prompts are padded without a box, and a box is its two corners", () => {
  const points = [{ x: 10, y: 20 }];
  const size = { width: 100, height: 50 };
  expect(toModel({ points, labels: [1], box: null, maskInput: null, before: null }, size, 1000)).toEqual({
    pointCoords: [[100, 200], [0, 0]],
    pointLabels: [1, -1],
    maskInput: null,
  });
  expect(toModel({ points, labels: [0], box: [1, 2, 3, 4], maskInput: null, before: null }, size, 1000)).toEqual({
    pointCoords: [[100, 200], [10, 20], [30, 40]],
    pointLabels: [0, 2, 3],
    maskInput: null,
  });
});
