import { beforeEach, expect, test } from "vitest";
import type { Task } from "../src/api";
import { area } from "../src/mask";
import { OpenTask } from "../src/open_task";
import type { Answer, ModelPrompt } from "../src/prompt";
import { decodeRle } from "../src/rle";
import type { Change } from "../src/saving";
import { finishedMasks } from "../src/shown";
import type { Superpixels } from "../src/snapped_upscale";
import { trustingScorer } from "./scorers";

const SIDE = 8;
const TASK = {
  task_id: 1, kind: "annotate", width: 32, height: 32, image_size: 4 * SIDE, max_mask_seconds: 60,
  masks: [], prefilled: [], flagged: [],
} as unknown as Task;

/** The decoder's answers come when `answer` is called; every output is a row of cells, at the prompt's height. */
let asked: { prompt: ModelPrompt; answer: () => void; fail: () => void }[];
let saved: Change[];
let said: string;
let snaps: boolean;
let open: OpenTask;

/** Rows 3 to 9 of the image, and the others. */
const STRIPE: Superpixels = {
  width: 32,
  height: 32,
  atoms: Uint32Array.from({ length: 32 * 32 }, (_, at) => Number(at >= 3 * 32 && at < 10 * 32)),
  segmentations: [Uint32Array.from([0, 1])],
  unions: Uint32Array.from([0, 1, 1, 2, 0, 2]),
  borders: Float32Array.from([0.7]),
  depths: Float32Array.from([11, 4, 16]),
  clickScorer: trustingScorer(),
};

function answerTo({ pointCoords: [[, y]] }: ModelPrompt): Answer {
  const row = Math.floor(y / 4);
  const cells = Array.from({ length: 4 * SIDE * SIDE }, (_, at) => (Math.floor(at / SIDE) % SIDE === row ? 10 : -10));
  return { lowResMasks: Float32Array.from(cells), predictedIou: [0.8, 0.7, 0.9, 0.8] };
}

const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

async function answered(): Promise<void> {
  await settled();
  while (asked.length) {
    asked.shift()?.answer();
    await settled();
  }
}

/** Of each mask that was sent: its clicks. */
const clicks = (): number[][][] =>
  saved.map((change) => (change.kind === "save" ? change.mask.interactions.map(({ coords }) => coords) : []));

beforeEach(() => {
  begin(null);
});

function begin(superpixels: Superpixels | null): void {
  asked = [];
  saved = [];
  snaps = true;
  const decoder = {
    ask: (prompt: ModelPrompt) =>
      new Promise<Answer>((resolve, reject) =>
        asked.push({ prompt, answer: () => resolve(answerTo(prompt)), fail: () => reject(new Error("no answer")) }),
      ),
    hover: async () => null,
    dropHover: () => {},
  };
  const aids = {
    lookCloser: async () => Promise.reject(new Error("not asked for")),
    superpixels,
    wantsSnap: () => snaps,
    wantSnap: (wanted: boolean) => void (snaps = wanted),
  };
  open = new OpenTask(TASK, {} as ImageBitmap, aids, [], decoder, {
    say: (message) => void (said = message),
    changed: () => {},
    save: (change) => void saved.push(change),
    isOpen: () => true,
  });
}

test("whether a mask is made of superpixels is changed in turn: not of one that is accepted before", async () => {
  begin(STRIPE);
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  open.drawing.toggleSnap();
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  await answered();
  const made = saved.map((change) =>
    change.kind === "save" ? [area(decodeRle(change.mask.segmentation)), change.mask.interactions[0].snapped] : [],
  );
  expect(made).toEqual([[7 * 32, true], [4 * 32, false]]);
});

test("the mask in sight is what changes, whichever way the ones after it are made", async () => {
  begin(STRIPE);
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.drawing.toggleSnap();
  open.drawing.click({ x: 6, y: 6 }, 1);
  open.drawing.toggleSnap(); // the second answer alone
  await answered();
  open.undo();
  await answered();
  expect([open.drawing.snaps, snaps, area(open.drawing.session.mask)]).toEqual([false, true, 4 * 32]);
  open.drawing.click({ x: 7, y: 6 }, 1);
  await answered();
  expect([open.drawing.snaps, area(open.drawing.session.mask)]).toEqual([false, 4 * 32]); // so is the next answer
  open.drawing.toggleSnap();
  await answered();
  expect([open.drawing.snaps, snaps, area(open.drawing.session.mask)]).toEqual([true, true, 7 * 32]);
});

test("an image without superpixels says so", async () => {
  open.drawing.toggleSnap();
  await answered();
  expect(said).toContain("no superpixels");
  expect(snaps).toBe(true);
});

test("a click on the next object counts although the mask before is not answered yet", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  open.drawing.click({ x: 5, y: 20 }, 1);
  open.accept();
  expect(open.drawing.waitingClicks.length).toBe(2);
  await answered();
  expect(clicks()).toEqual([[[5, 6]], [[5, 20]]]);
  expect(open.drawing.waitingClicks.length).toBe(0);
});

test("what waits for the model is dropped with the mask in the making, and nothing after it", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.drawing.click({ x: 9, y: 6 }, 0);
  open.clear();
  expect(open.drawing.waitingClicks.length).toBe(0);
  open.drawing.click({ x: 5, y: 20 }, 1);
  open.accept();
  await answered();
  expect(clicks()).toEqual([[[5, 20]]]);
});

test("Esc drops what comes after a mask that is accepted already and waits for the model", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  open.drawing.click({ x: 5, y: 20 }, 1);
  open.clear();
  await answered();
  expect(clicks()).toEqual([[[5, 6]]]);
  expect(open.isUnfinished).toBe(false);
});

test("clicks for a mask that could not be taken up begin no other", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  await answered();
  open.edit(open.finished.accepted[0].id);
  open.drawing.click({ x: 5, y: 20 }, 1);
  open.accept();
  await settled();
  asked.shift()?.fail();
  await answered();
  expect(clicks()).toEqual([[[5, 6]]]);
  expect(open.drawing.session.isEmpty).toBe(true);
});

test("a mask is not taken up over one whose click is not answered yet", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  await answered();
  const [{ id }] = open.finished.accepted;
  open.drawing.click({ x: 5, y: 20 }, 1);
  open.edit(id);
  await answered();
  expect(said).toContain("accept it with Enter or drop it");
  expect(open.drawing.editing).toBeNull();
  expect(open.drawing.isTouched).toBe(true);
});

test("a mask that is deleted or let go while it is taken up stays so", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  await answered();
  const [{ id }] = open.finished.accepted;
  open.edit(id);
  await settled();
  open.clear();
  await answered();
  expect(open.drawing.editing).toBeNull();
  open.edit(id);
  await settled();
  open.deleteMask(id);
  await answered();
  expect(open.drawing.editing).toBeNull();
  expect(open.finished.accepted).toEqual([]);
});

test("a mask taken up and undone to nothing is neither accepted nor dropped", async () => {
  open.drawing.click({ x: 5, y: 6 }, 1);
  open.accept();
  await answered();
  open.edit(open.finished.accepted[0].id);
  await answered();
  expect(open.drawing.isTouched).toBe(false);
  open.undo();
  await answered();
  expect(open.drawing.isTouched).toBe(true);
});

test("deleted masks come back one after the other, the last one first", async () => {
  for (const y of [6, 20]) {
    open.drawing.click({ x: 5, y }, 1);
    open.accept();
  }
  await answered();
  const [first, second] = open.finished.accepted.map(({ id }) => id);
  open.deleteMask(first);
  open.deleteMask(second);
  open.undo(true); // a key that is held takes back clicks, and brings nothing back
  open.undo();
  open.undo();
  await answered();
  expect(open.finished.accepted.map(({ id }) => id)).toEqual([second, first]);
  expect(saved.slice(2).map(({ kind, id }) => [kind, id])).toEqual([
    ["delete", first], ["delete", second], ["save", second], ["save", first],
  ]);
});

test("pointing at a mask of the list ends with its entry, and with the image", async () => {
  for (const y of [6, 20]) {
    open.drawing.click({ x: 5, y }, 1);
    open.accept();
  }
  await answered();
  const [first] = open.finished.accepted.map(({ id }) => id);
  open.point(first);
  expect(finishedMasks(open).map(({ key }) => key)).toEqual([first]);
  open.deleteMask(first);
  open.undo();
  await answered();
  expect(finishedMasks(open).length).toBe(2);
  open.point(first);
  begin(null);
  expect(open.pointed).toBeNull();
});
