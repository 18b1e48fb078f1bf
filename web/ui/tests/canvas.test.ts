import { expect, test } from "vitest";
import { Cursor } from "../src/cursor";
import { begin, dragTo, type Gesture, strokeLabel } from "../src/gesture";

const SIZE = { width: 40, height: 20 };
const VIEW = { scale: 2, x: 0, y: 0 };

test("a click that the mouse leaves is a box, unless it removes", () => {
  for (const [isOther, isBox] of [[false, true], [true, false]] as const) {
    const gesture = begin("click", isOther, { x: 3, y: 4 }) as Gesture & { kind: "click" };
    dragTo(gesture, { x: 4.5, y: 4 }, VIEW); // 3 pixels of the screen: the hand was not still
    expect(gesture.isBox).toBe(false);
    dragTo(gesture, { x: 6, y: 4 }, VIEW);
    expect(gesture.isBox).toBe(isBox);
    dragTo(gesture, { x: 3, y: 4 }, VIEW);
    expect(gesture).toMatchObject({ from: { x: 3, y: 4 }, isBox });
  }
});

test("Shift or the right button swaps brush and eraser; taking up a mask is no gesture", () => {
  expect([strokeLabel("brush", false), strokeLabel("brush", true)]).toEqual([1, 0]);
  expect([strokeLabel("eraser", false), strokeLabel("eraser", true)]).toEqual([0, 1]);
  expect(begin("eraser", true, { x: 1, y: 2 })).toEqual({ kind: "stroke", points: [{ x: 1, y: 2 }], label: 1 });
  expect(begin("select", false, { x: 1, y: 2 })).toBeNull();
});

test("the cross begins in the middle, stays on the image, and sets a box by two corners", () => {
  const cursor = new Cursor();
  expect(cursor.setCorner(SIZE)).toBeNull();
  expect(cursor.corner).toBeNull(); // there is no cross yet
  expect(cursor.move("left", 5, SIZE)).toEqual({ x: 15, y: 10 });
  expect(cursor.move("up", 99, SIZE)).toEqual({ x: 15, y: 0.5 });
  expect(cursor.setCorner(SIZE)).toBeNull();
  cursor.move("right", 3, SIZE);
  cursor.move("down", 4, SIZE);
  expect(cursor.setCorner(SIZE)).toEqual([15, 0, 18, 4]);
  expect(cursor.corner).toBeNull();
});
