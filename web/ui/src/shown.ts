/** What the painter is given to show: finished masks, and what the annotator is doing right now. */

import type { Cursor } from "./cursor";
import { type Point, toImage, type View } from "./geometry";
import { type Gesture, strokeLabel } from "./gesture";
import { type Colour, colourOf, type LayerMask } from "./layer";
import type { OpenTask } from "./open_task";
import type { Draft } from "./painter";
import type { Tools } from "./tools";

const LOCKED: Colour = [226, 230, 236];
const FLAGGED: Colour = [255, 70, 70];

/**
 * Bottom to top: locked masks, flagged ones, accepted ones but for the one that is taken up; small over
 * large. The one alone that is pointed at in the list, if there is one.
 */
export function finishedMasks({ finished, drawing, pointed }: OpenTask): LayerMask[] {
  const bySize = (a: LayerMask, b: LayerMask): number => b.mask.bits.length - a.mask.bits.length;
  const locked = (isFlagged: boolean): LayerMask[] =>
    finished.locked
      .filter(({ id }) => finished.flagged.has(id) === isFlagged)
      .map(({ id, mask }) => ({ key: `locked ${id}`, mask, colour: isFlagged ? FLAGGED : LOCKED, striped: true }))
      .sort(bySize);
  const accepted = finished.accepted
    .filter(({ id }) => id !== drawing.editing)
    .map(({ id, mask, colour }) => ({ key: id, mask, colour: colourOf(colour), striped: false }))
    .sort(bySize);
  const all = [...locked(false), ...locked(true), ...accepted];
  const one = all.find(({ key }) => pointed !== null && (key === pointed || key === `locked ${pointed}`));
  return one ? [one] : all;
}

export interface Hand {
  gesture: Gesture | null;
  cursor: Cursor;
  /** On the canvas; null while the mouse is elsewhere. */
  mouse: Point | null;
  isShift: boolean;
}

export function draftOf(open: OpenTask | null, { tool, brushRadius: radius }: Tools, hand: Hand, view: View): Draft {
  const { gesture, mouse, cursor: { cross, corner } } = hand;
  const drawing = open?.drawing;
  const actions = drawing?.session.actions ?? [];
  const isEmpty = drawing?.session.isEmpty ?? true;
  const answered = actions.filter((action) => action.kind === "point");
  const isBrush = tool === "brush" || tool === "eraser";
  return {
    mask: (isEmpty ? drawing?.preview : drawing?.session.mask) ?? null,
    isPreview: isEmpty,
    clicks: [
      ...answered.map(({ coords: [x, y], label }) => ({ x, y, label, waiting: false })),
      ...(drawing?.waitingClicks ?? []).map((click) => ({ ...click, waiting: true })),
    ],
    box: actions.findLast((action) => action.kind === "box")?.coords ?? null,
    dragged: gesture?.kind === "click" && gesture.isBox ? [gesture.from, gesture.to] : corner && cross && [corner, cross],
    stroke: gesture?.kind === "stroke" ? { points: gesture.points, radius, label: gesture.label } : null,
    brush: isBrush && mouse ? { at: toImage(view, mouse), radius, label: strokeLabel(tool, hand.isShift) } : null,
    crosshair: cross,
  };
}
