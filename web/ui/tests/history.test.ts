import { expect, test } from "vitest";
import { emptyHistory, push, redo, undo } from "../src/history";

test("clicks and strokes are taken back and done again in one order", () => {
  let history = push(push(push(emptyHistory<string>(), "click"), "stroke"), "box");
  history = undo(undo(history));
  expect(history.done).toEqual(["click"]);
  expect(redo(history).done).toEqual(["click", "stroke"]);
  expect(redo(redo(redo(history))).done).toEqual(["click", "stroke", "box"]);
});

test("a new action forgets what was taken back", () => {
  const history = push(undo(push(push(emptyHistory<string>(), "a"), "b")), "c");
  expect(redo(history).done).toEqual(["a", "c"]);
});

test("with nothing to take back, nothing changes", () => {
  const history = emptyHistory<string>();
  expect(undo(history)).toBe(history);
  expect(redo(history)).toBe(history);
});
