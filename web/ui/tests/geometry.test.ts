import { expect, test } from "vitest";
import { dragBox, fit, inputSize, pan, pixelAt, toImage, toInput, toScreen, visibleBox, cropAround, zoomAt } from "../src/geometry";

const IMAGE = { width: 2250, height: 1500 };
const CANVAS = { width: 900, height: 700 };

test("a fitted image lies in the middle and within the canvas", () => {
  const view = fit(IMAGE, CANVAS, 0);
  expect(view).toEqual({ scale: 0.4, x: 0, y: 50 });
});

test("zooming keeps the place under the cursor", () => {
  let view = fit(IMAGE, CANVAS);
  const cursor = { x: 321, y: 123 };
  const before = toImage(view, cursor);
  for (const factor of [1.3, 2, 0.5, 100, 1e-9]) {
    view = zoomAt(view, cursor, factor);
    expect(toImage(view, cursor).x).toBeCloseTo(before.x, 6);
    expect(toImage(view, cursor).y).toBeCloseTo(before.y, 6);
    expect(view.scale).toBeGreaterThanOrEqual(0.05);
    expect(view.scale).toBeLessThanOrEqual(40);
  }
});

test("panning never loses the image", () => {
  const view = pan(fit(IMAGE, CANVAS), 1e6, -1e6, IMAGE, CANVAS);
  expect(view.x).toBe(860);
  expect(view.y).toBeCloseTo(40 - 1500 * view.scale);
});

test("screen and image are inverse to each other", () => {
  const view = zoomAt(fit(IMAGE, CANVAS), { x: 10, y: 20 }, 3);
  const back = toScreen(view, toImage(view, { x: 77, y: 88 }));
  expect(back.x).toBeCloseTo(77);
  expect(back.y).toBeCloseTo(88);
});

test("pixels and boxes stay within the image", () => {
  expect(pixelAt({ x: 2249.9, y: 0 }, IMAGE)).toEqual({ x: 2249, y: 0 });
  expect(pixelAt({ x: 2250, y: 0 }, IMAGE)).toBeNull();
  expect(pixelAt({ x: -0.1, y: 3 }, IMAGE)).toBeNull();
  expect(dragBox({ x: 30.5, y: 40.5 }, { x: -10, y: 9e9 }, IMAGE)).toEqual([0, 40, 30, 1499]);
  expect(dragBox({ x: -30, y: -40 }, { x: -10, y: 10 }, IMAGE)).toBeNull();
});

test("the input frame is the longest side's", () => {
  expect(inputSize(IMAGE, 1024)).toEqual({ width: 1024, height: 683 });
  expect(inputSize({ width: 1, height: 4000 }, 1024)).toEqual({ width: 1, height: 1024 });
  expect(toInput({ x: 1125, y: 1500 }, IMAGE, 1024)).toEqual([512, 683]);
});

test("only the pixels on the canvas are seen, those at its edge whole", () => {
  expect(visibleBox(fit(IMAGE, CANVAS, 0), IMAGE, CANVAS)).toEqual({ x0: 0, y0: 0, x1: 2250, y1: 1500 });
  const view = { scale: 10, x: -95, y: 50 };
  expect(visibleBox(view, IMAGE, CANVAS)).toEqual({ x0: 9, y0: 0, x1: 100, y1: 65 });
});

// As the engine has them: tests/stages/test_zoom_in.py.
test.each([
  [[640, 480], [10, 300], [0, 194, 213, 407]],
  [[481, 321], [240.5, 160], [161, 80, 321, 240]],
  [[481, 321], [480, 320], [321, 161, 481, 321]],
  [[2250, 1500], [1033, 7], [658, 0, 1408, 750]],
  [[900, 1], [450, 0], [300, 0, 600, 1]],
  [[1, 1], [0, 0], [0, 0, 1, 1]],
])("of an image of %j the crop around %j is %j", ([width, height], [x, y], [x0, y0, x1, y1]) => {
  expect(cropAround({ x, y }, { width, height })).toEqual({ x0, y0, x1, y1 });
});
