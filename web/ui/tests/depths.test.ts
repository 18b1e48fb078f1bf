import { expect, test } from "vitest";
import { depthLooks, Distances, greatestDepth } from "../src/depths";
import { seeded } from "./random";

const [WIDTH, HEIGHT] = [23, 17];

/** Patches of a few pixels, each an atom. */
function patches(): { width: number; height: number; atoms: Uint32Array; count: number } {
  const across = Math.ceil(WIDTH / 3);
  const atoms = Uint32Array.from({ length: WIDTH * HEIGHT }, (_, at) => Math.floor(at / WIDTH / 2) * across + Math.floor((at % WIDTH) / 3));
  return { width: WIDTH, height: HEIGHT, atoms, count: atoms[atoms.length - 1] + 1 };
}

/** By looking at every pixel, those around the frame among them. */
function depthAt(isMask: (x: number, y: number) => boolean, x: number, y: number): number {
  let least = Infinity;
  for (let row = -1; row <= HEIGHT; row++) {
    for (let column = -1; column <= WIDTH; column++) {
      if (!isMask(column, row)) least = Math.min(least, Math.hypot(column - x, row - y));
    }
  }
  return least;
}

test.each([0.5, 0.9, 0.98, 1, 0])("depths are those found by looking at every pixel, where masks hold %s of the atoms", (share) => {
  const { count, ...frame } = patches();
  const draw = seeded(1);
  const mask = Uint8Array.from({ length: count }, () => Number(draw() < share));
  const isMask = (x: number, y: number): boolean =>
    x >= 0 && y >= 0 && x < WIDTH && y < HEIGHT && mask[frame.atoms[y * WIDTH + x]] === 1;
  let most = 0;
  for (let y = 0; y < HEIGHT; y++) {
    for (let x = 0; x < WIDTH; x++) {
      const depth = depthAt(isMask, x, y);
      expect(new Distances(frame, count, x, y).depth(mask)).toBeCloseTo(depth, 9);
      most = Math.max(most, depth);
    }
  }
  expect(greatestDepth(frame, mask)).toBeCloseTo(most, 9);
});

test("a place in the middle misses nothing of it, and one far from it counts as so far", () => {
  expect(depthLooks(20, 20)).toEqual([1, Math.log(20), 0]);
  expect(depthLooks(5, 20)).toEqual([0.25, Math.log(20), 10]);
  expect(depthLooks(0, 0)).toEqual([0, 0, 1]);
});
