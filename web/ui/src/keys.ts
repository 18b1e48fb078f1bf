/** The keys: what each does, and the sheet that says so. */

export type Command =
  | "output0" | "output1" | "output2"
  | "clickTool" | "brush" | "eraser" | "select" | "smaller" | "larger"
  | "snap" | "undo" | "redo" | "accept" | "clear" | "delete" | "flag"
  | "fit" | "zoomIn" | "zoomOut" | "left" | "right" | "up" | "down" | "add" | "remove" | "corner"
  | "outlines" | "uncovered" | "hide" | "pan"
  | "submit" | "skip" | "help";

export interface Keystroke {
  key: string;
  ctrlKey: boolean;
  metaKey: boolean;
  shiftKey: boolean;
  altKey: boolean;
}

/** Headings, and under each the keys as they are shown and what they do. */
export const KEY_SHEET: readonly (readonly [string, readonly (readonly [string, string])[]])[] = [
  ["Make a mask", [
    ["Left click", "add what is under the mouse"],
    ["Right click, Shift+click", "remove what is under the mouse"],
    ["Drag", "draw a box around the object"],
    ["1 2 3", "choose whole, part or subpart after the first click"],
    ["S", "the image's edges or the model's own, where a run has superpixels"],
    ["B", "brush: paint pixels"],
    ["E", "eraser: take pixels away (Shift or the right button swaps both)"],
    ["[ ]", "smaller or larger brush"],
    ["P", "back to clicking"],
    ["Backspace, Ctrl+Z", "take back the last click, box or stroke"],
    ["Ctrl+Shift+Z", "do it again"],
    ["Enter, N", "accept the mask; it is saved at once"],
    ["Esc", "drop the mask in the making"],
  ]],
  ["Finished masks", [
    ["V, then click", "take a mask up again"],
    ["Delete", "delete the mask that is taken up"],
    ["X", "flag the locked mask under the mouse as wrong, or take the flag back"],
  ]],
  ["See", [
    ["Wheel, + -", "zoom at the mouse"],
    ["Space+drag", "move the image"],
    ["0", "show the whole image"],
    ["H held", "hide all masks"],
    ["O", "outlines only"],
    ["U", "show what no mask covers"],
  ]],
  ["The image", [
    ["Ctrl+Enter", "submit and go on to the next; in a review: give the verdict"],
    ["Ctrl+Space", "skip, with a reason"],
    ["?", "this sheet"],
  ]],
  ["Without a mouse", [
    ["Arrows", "move the cross (Shift: further)"],
    ["A", "add what is under the cross"],
    ["R", "remove what is under the cross"],
    ["C", "set one corner of a box, then the other"],
  ]],
];

const PLAIN: Record<string, Command> = {
  "1": "output0", "2": "output1", "3": "output2",
  p: "clickTool", b: "brush", e: "eraser", v: "select", s: "snap", "[": "smaller", "]": "larger",
  backspace: "undo", enter: "accept", n: "accept", escape: "clear", delete: "delete", x: "flag",
  "0": "fit", "+": "zoomIn", "=": "zoomIn", "-": "zoomOut",
  arrowleft: "left", arrowright: "right", arrowup: "up", arrowdown: "down",
  a: "add", r: "remove", c: "corner",
  o: "outlines", u: "uncovered", h: "hide", " ": "pan", "?": "help",
};

export function commandOf(stroke: Keystroke): Command | null {
  const key = stroke.key.toLowerCase();
  if (stroke.altKey) return key === "[" || key === "]" ? PLAIN[key] : null; // where the keyboard has them on Alt or AltGr
  if (stroke.ctrlKey || stroke.metaKey) {
    if (key === "z") return stroke.shiftKey ? "redo" : "undo";
    if (key === "y") return "redo";
    if (key === "enter") return "submit";
    if (key === " ") return "skip";
    return null;
  }
  return Object.hasOwn(PLAIN, key) ? PLAIN[key] : null;
}

/** Whether a key pressed here is meant for the element and not for the tool. */
export function isForElement(stroke: Keystroke, target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target.closest("dialog[open]")) return true;
  if (target.isContentEditable || target.matches("textarea, select")) return true;
  if (target.matches("input")) return true;
  const presses = stroke.key === "Enter" || stroke.key === " ";
  return presses && !stroke.ctrlKey && !stroke.metaKey && target.matches("button, a, summary");
}
