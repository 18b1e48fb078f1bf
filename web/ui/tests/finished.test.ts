import { expect, test } from "vitest";
import type { MaskPayload } from "../src/api";
import { FinishedMasks, smallestAt } from "../src/finished";
import { EMPTY, type Mask } from "../src/mask";
import { encodeRle } from "../src/rle";

const SIZE = { width: 20, height: 10 };

function square(x: number, y: number, side: number): Mask {
  return { x, y, width: side, height: side, bits: new Uint8Array(side * side).fill(1) };
}

function payload(mask: Mask, seconds = 1): MaskPayload {
  return { segmentation: encodeRle(mask, SIZE), predicted_iou: 0.8, stability_score: 0.9, seconds, interactions: [] };
}

const NOTHING = { masks: [], prefilled: [], flagged: [] };

test("what was never sent is applied to what the server has", () => {
  const [kept, dropped, changed] = [square(0, 0, 2), square(4, 0, 2), square(8, 0, 2)];
  const masks = [kept, dropped, changed].map((mask, at) => ({ mask_id: `m${at}`, mask: payload(mask), base: null }));
  const prefilled = [7, 8].map((id) => ({ id, segmentation: encodeRle(square(0, 5, 3), SIZE) }));
  const finished = new FinishedMasks({ masks, prefilled, flagged: [7] }, [
    { kind: "delete", id: "m1" },
    { kind: "save", id: "m2", mask: payload(square(8, 0, 4)) },
    { kind: "save", id: "m3", mask: payload(square(0, 4, 2), 5) },
    { kind: "flag", id: "7", flagged: false },
    { kind: "flag", id: "8", flagged: true },
  ]);
  expect(finished.accepted.map(({ id, mask }) => [id, mask.width])).toEqual([["m0", 2], ["m2", 4], ["m3", 2]]);
  expect([...finished.flagged]).toEqual(["8"]);
  expect(finished.locked.map(({ id }) => id)).toEqual(["7", "8"]);
  expect(finished.seconds).toBe(7);
  expect(finished.bringBack()).toBeNull(); // nothing was deleted on this visit
});

test("a mask keeps its colour and place when its shape changes", () => {
  const finished = new FinishedMasks(NOTHING, []);
  for (const id of ["a", "b", "c"]) finished.accept(id, EMPTY, payload(EMPTY));
  const before = finished.accepted;
  finished.accept("b", square(1, 1, 3), payload(square(1, 1, 3)));
  expect(finished.accepted.map(({ id, colour }) => [id, colour])).toEqual([["a", 0], ["b", 1], ["c", 2]]);
  expect(before.find(({ id }) => id === "b")?.mask).toBe(EMPTY); // lists are not changed under a reader
});

test("the mask that was deleted last comes back once", () => {
  const finished = new FinishedMasks(NOTHING, []);
  for (const id of ["a", "b"]) finished.accept(id, EMPTY, payload(EMPTY));
  finished.refuse("a", "too large");
  expect(finished.hasRefused).toBe(true);
  finished.delete("a");
  finished.delete("unknown");
  expect(finished.bringBack()?.id).toBe("a");
  expect(finished.hasRefused).toBe(false);
  expect(finished.accepted.map(({ id }) => id)).toEqual(["b", "a"]);
  expect(finished.bringBack()).toBeNull();
});

test("of masks that lie over each other the smallest is meant", () => {
  const masks = [square(0, 0, 8), square(2, 2, 3), square(2, 2, 5)].map((mask, id) => ({ id, mask }));
  expect(smallestAt(masks, { x: 3.5, y: 3.5 })?.id).toBe(1);
  expect(smallestAt(masks, { x: 6.5, y: 6.5 })?.id).toBe(2);
  expect(smallestAt(masks, { x: 0.5, y: 7.5 })?.id).toBe(0);
  expect(smallestAt(masks, { x: 9.5, y: 7.5 })).toBeNull();
});
