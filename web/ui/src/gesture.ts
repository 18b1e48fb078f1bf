/** What the mouse does from pressing a button until letting go of it. */

import { type Point, toScreen, type View } from "./geometry";
import type { Tool } from "./tools";

/** Places are in the image, so that zooming in the middle of a gesture moves none of them. */
export type Gesture =
  | { kind: "pan"; last: Point }
  | { kind: "click"; from: Point; to: Point; label: number; isBox: boolean }
  | { kind: "stroke"; points: Point[]; label: number };

const CLICK_PIXELS = 4; // on screen; a mouse that moved further has dragged

/** What pressing the left or the right button begins; null with the tool that takes up masks. */
export function begin(tool: Tool, isOther: boolean, place: Point): Gesture | null {
  if (tool === "select") return null;
  if (tool === "click") return { kind: "click", from: place, to: place, label: isOther ? 0 : 1, isBox: false };
  return { kind: "stroke", points: [place], label: strokeLabel(tool, isOther) };
}

/** 1 paints, 0 erases. `isOther`: Shift or the right button, which swap both. */
export function strokeLabel(tool: Tool, isOther: boolean): number {
  return (tool === "brush") === isOther ? 0 : 1;
}

/** A click that the mouse leaves becomes a box, unless it removes. */
export function dragTo(gesture: Gesture & { kind: "click" }, place: Point, view: View): void {
  gesture.to = place;
  const [from, to] = [toScreen(view, gesture.from), toScreen(view, place)];
  if (gesture.label === 1 && Math.hypot(to.x - from.x, to.y - from.y) > CLICK_PIXELS) gesture.isBox = true;
}
