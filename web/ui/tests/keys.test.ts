import { expect, test } from "vitest";
import { commandOf } from "../src/keys";

const none = { ctrlKey: false, metaKey: false, shiftKey: false, altKey: false };

test.each([
  [{ key: "1" }, "output0"],
  [{ key: "Backspace" }, "undo"],
  [{ key: "z", ctrlKey: true }, "undo"],
  [{ key: "Z", ctrlKey: true, shiftKey: true }, "redo"],
  [{ key: "z", metaKey: true }, "undo"],
  [{ key: "Enter" }, "accept"],
  [{ key: "Enter", ctrlKey: true }, "submit"],
  [{ key: " " }, "pan"],
  [{ key: " ", ctrlKey: true }, "skip"],
  [{ key: "?", shiftKey: true }, "help"],
  [{ key: "B" }, "brush"],
  [{ key: "b", ctrlKey: true }, null],
  [{ key: "c", ctrlKey: true }, null],
  [{ key: "a", altKey: true }, null],
  [{ key: "[", altKey: true, ctrlKey: true }, "smaller"], // AltGr+8 of a German keyboard
  [{ key: "constructor" }, null],
] as const)("%o is %s", (stroke, command) => {
  expect(commandOf({ ...none, ...stroke })).toBe(command);
});
