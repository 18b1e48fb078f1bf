import { expect, test } from "vitest";
import { area, common, contains, EMPTY, isEmpty, type Mask, outline, shareWithin, strokeMask, subtract, trim, union } from "../src/mask";
import { maskOf, randomMask, seeded, whole } from "./random";

const SIZE = { width: 23, height: 17 };

test("union and difference are those of the pixels", () => {
  const random = seeded(1);
  for (let trial = 0; trial < 200; trial++) {
    const [a, b] = [randomMask(random, SIZE), randomMask(random, SIZE)];
    const [pixelsA, pixelsB] = [whole(a, SIZE), whole(b, SIZE)];
    expect(whole(union(a, b), SIZE)).toEqual(pixelsA.map((bit, at) => bit | pixelsB[at]));
    expect(whole(subtract(a, b), SIZE)).toEqual(pixelsA.map((bit, at) => bit & (pixelsB[at] ^ 1)));
    expect(area(a)).toBe(pixelsA.reduce((sum, bit) => sum + bit, 0));
  }
});

test("trimming keeps the pixels and drops empty rows and columns", () => {
  const trimmed = trim(maskOf(["....", ".#..", ".##.", "...."], { x: 5, y: 6 }));
  expect(trimmed).toEqual(maskOf(["#.", "##"], { x: 6, y: 7 }));
  expect(trim(maskOf(["..", ".."]))).toBe(EMPTY);
  expect(isEmpty(EMPTY)).toBe(true);
});

test("a place is in the mask when its pixel is", () => {
  const mask = maskOf(["#.", "##"], { x: 6, y: 7 });
  expect(contains(mask, 6.9, 7.1)).toBe(true);
  expect(contains(mask, 7.1, 7.1)).toBe(false);
  expect(contains(mask, 5.9, 7.1)).toBe(false);
});

test("an outline is the rim of the mask", () => {
  const rim = outline(maskOf(["#####", "#####", "#####", "#####", "#####"]), 1);
  expect(Array.from(rim)).toEqual(Array.from(maskOf(["#####", "#...#", "#...#", "#...#", "#####"]).bits));
});

test("a dab of the brush is a disc, a stroke a band, and neither leaves the image", () => {
  expect(strokeMask([{ x: 5.5, y: 5.5 }], 1, SIZE)).toEqual(maskOf([".#.", "###", ".#."], { x: 4, y: 4 }));
  const band = strokeMask([{ x: 2, y: 8 }, { x: 12, y: 8 }], 2, SIZE);
  expect([band.x, band.y, band.width, band.height]).toEqual([0, 6, 14, 4]);
  const corner = strokeMask([{ x: -1, y: -1 }, { x: 1, y: 1 }], 3, SIZE);
  expect([corner.x, corner.y]).toEqual([0, 0]);
  expect(strokeMask([{ x: -9, y: -9 }], 3, SIZE)).toBe(EMPTY);
  const long = Array.from({ length: 200_000 }, (_, at) => ({ x: at % 5, y: 3 }));
  expect(strokeMask(long, 2, SIZE)).toEqual(strokeMask([{ x: 0, y: 3 }, { x: 4, y: 3 }], 2, SIZE));
});

/** Looks at every pixel for every part of the stroke. */
function slowStroke(points: readonly { x: number; y: number }[], radius: number, size = SIZE): Mask {
  const bits = new Uint8Array(size.width * size.height);
  points.forEach((b, index) => {
    const a = points[Math.max(index - 1, 0)];
    const [dx, dy] = [b.x - a.x, b.y - a.y];
    const squared = dx * dx + dy * dy;
    for (let y = 0; y < size.height; y++) {
      for (let x = 0; x < size.width; x++) {
        const [px, py] = [x + 0.5 - a.x, y + 0.5 - a.y];
        const along = squared ? Math.min(1, Math.max(0, (px * dx + py * dy) / squared)) : 0;
        const [ex, ey] = [px - along * dx, py - along * dy];
        if (ex * ex + ey * ey <= radius * radius) bits[y * size.width + x] = 1;
      }
    }
  });
  return trim({ x: 0, y: 0, ...size, bits });
}

test.each([
  ["anywhere", 40, 0],
  ["by less than a pixel", 0.6, 0],
  ["in half pixels, whose centres lie on its edge", 12, 0.5],
  ["along rows but for what rounding makes", 12, 1e-14],
])("a stroke that moves %s is that of its pixels", (_, step, grid) => {
  const random = seeded(7);
  const move = (): number => {
    const by = (random() - 0.5) * step;
    return grid === 0 ? by : grid === 0.5 ? Math.round(2 * by) / 2 : Math.round(by) + (random() - 0.5) * grid;
  };
  for (let trial = 0; trial < 1500; trial++) {
    const points = [{ x: Math.round(random() * SIZE.width), y: Math.round(random() * SIZE.height) }];
    for (let count = Math.floor(random() * 6); count > 0; count--) {
      const { x, y } = points.at(-1) as { x: number; y: number };
      const isStill = [random(), random()].map((chance) => chance < 0.25);
      points.push({ x: isStill[0] ? x : x + move(), y: isStill[1] ? y : y + move() });
    }
    const radius = [0.3, 1, 2.5, 5, 9 * random()][Math.floor(random() * 5)];
    expect(strokeMask(points, radius, SIZE), JSON.stringify([points, radius])).toEqual(slowStroke(points, radius));
  }
});

test("a stroke takes time by what it paints, however many its points", () => {
  const size = { width: 400, height: 400 };
  const points = Array.from({ length: 400 }, (_, at) => ({ x: 190 + at / 16, y: 190 + at / 32 }));
  const milliseconds = (draw: typeof strokeMask): number => {
    const begun = performance.now();
    draw(points, 200, size);
    return performance.now() - begun;
  };
  expect(4 * milliseconds(strokeMask)).toBeLessThan(milliseconds(slowStroke));
});

test("boxes that share nothing have nothing in common", () => {
  const box = { x0: 2, y0: 3, x1: 10, y1: 9 };
  expect(common(box, { x0: 5, y0: 0, x1: 20, y1: 5 })).toEqual({ x0: 5, y0: 3, x1: 10, y1: 5 });
  const { x0, y0, x1, y1 } = common(box, { x0: 15, y0: 20, x1: 30, y1: 30 });
  expect([x1 - x0, y1 - y0]).toEqual([0, 0]);
});

test("the share of a mask within a box is that of its pixels", () => {
  const random = seeded(4);
  const box = { x0: 3, y0: 2, x1: 15, y1: 9 };
  for (let trial = 0; trial < 100; trial++) {
    const mask = trim(randomMask(random, SIZE));
    const pixels = whole(mask, SIZE);
    const inside = [...pixels].filter((bit, at) => {
      const [x, y] = [at % SIZE.width, Math.floor(at / SIZE.width)];
      return bit && x >= box.x0 && x < box.x1 && y >= box.y0 && y < box.y1;
    });
    expect(shareWithin(mask, box)).toBeCloseTo(isEmpty(mask) ? 1 : inside.length / area(mask), 12);
  }
  expect(shareWithin(EMPTY, box)).toBe(1);
});
