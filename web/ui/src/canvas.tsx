/** The image and what the mouse and the arrow keys do on it. */

import { useEffect, useRef } from "preact/hooks";
import { dragBox, fit, pan, pixelAt, type Point, toImage, toScreen, type View, zoomAt } from "./geometry";
import type { Command } from "./keys";
import { type Colour, colourOf, type LayerMask, type Show } from "./layer";
import type { OpenTask } from "./open_task";
import { Painter } from "./painter";
import type { Workspace } from "./workspace";

const LOCKED: Colour = [226, 230, 236];
const FLAGGED: Colour = [255, 70, 70];
const CLICK_PIXELS = 4; // a mouse that moved further has dragged

type Gesture =
  | { kind: "pan"; last: Point }
  | { kind: "click"; from: Point; to: Point; label: number; isBox: boolean }
  | { kind: "stroke"; points: Point[]; label: number };

/** Everything about the canvas that no other part of the page needs to know. */
export class CanvasControl {
  private view: View = { scale: 1, x: 0, y: 0 };
  private painter: Painter;
  private gesture: Gesture | null = null;
  /** On the canvas; null while the mouse is elsewhere. */
  private mouse: Point | null = null;
  private isShift = false;
  private spaceHeld = false;
  /** The keyboard's cursor, in image places. */
  private crosshair: Point | null = null;
  private corner: Point | null = null;
  private shownImage: ImageBitmap | null = null;
  private canvasSize = { width: 1, height: 1 };

  constructor(
    private readonly workspace: Workspace,
    private readonly element: HTMLCanvasElement,
    below: HTMLCanvasElement,
  ) {
    this.painter = new Painter(below, element);
  }

  resize(size: { width: number; height: number }): void {
    this.canvasSize = size;
    this.painter.resize(size);
    this.fit();
  }

  fit(): void {
    this.setView(fit(this.workspace.size, this.canvasSize));
  }

  /** Shows what the workspace holds now. */
  sync(): void {
    const { workspace } = this;
    const image = workspace.current?.image ?? null;
    if (image !== this.shownImage) {
      this.shownImage = image;
      this.painter.setImage(image, workspace.size);
      this.crosshair = this.corner = null;
      this.fit();
    }
    const show: Show = workspace.tools.showUncovered ? "uncovered" : workspace.tools.showOutlines ? "outlines" : "filled";
    this.painter.setMasks(workspace.current ? layerMasks(workspace.current) : [], show);
    this.painter.setHidden(workspace.tools.hidden);
    this.drawDraft();
  }

  /** Commands that concern the view or the keyboard's cursor. False for others. */
  run(command: Command, isShift: boolean): boolean {
    const { workspace } = this;
    const middle = { x: this.canvasSize.width / 2, y: this.canvasSize.height / 2 };
    switch (command) {
      case "fit":
        this.fit();
        return true;
      case "zoomIn":
      case "zoomOut":
        this.setView(zoomAt(this.view, this.mouse ?? middle, command === "zoomIn" ? 1.25 : 0.8));
        return true;
      case "pan":
        this.spaceHeld = true;
        this.element.classList.add("grab");
        return true;
      case "left":
      case "right":
      case "up":
      case "down":
        this.moveCrosshair(command, (isShift ? 25 : 5) / this.view.scale);
        return true;
      case "add":
      case "remove": {
        const pixel = this.crosshair && pixelAt(this.crosshair, workspace.size);
        if (pixel) workspace.current?.drawing.click(pixel, command === "add" ? 1 : 0);
        else workspace.say("Move the cross with the arrow keys first.");
        return true;
      }
      case "corner":
        this.setCorner();
        return true;
      case "flag":
        workspace.current?.flagAt(this.mouse ? toImage(this.view, this.mouse) : this.crosshair);
        return true;
      default:
        return false;
    }
  }

  releaseSpace(): void {
    this.spaceHeld = false;
    this.element.classList.remove("grab");
  }

  pointerDown(event: PointerEvent): void {
    this.element.focus({ preventScroll: true });
    const at = this.place(event);
    this.mouse = at;
    this.crosshair = this.corner = null;
    this.element.setPointerCapture(event.pointerId);
    if (this.gesture) return;
    if (event.button === 1 || (event.button === 0 && this.spaceHeld)) {
      this.gesture = { kind: "pan", last: at };
      return;
    }
    const { workspace } = this;
    if (!workspace.canDraw || (event.button !== 0 && event.button !== 2)) return;
    const isOther = event.button === 2 || event.shiftKey;
    const place = toImage(this.view, at);
    if (workspace.tools.tool === "brush" || workspace.tools.tool === "eraser") {
      const label = (workspace.tools.tool === "brush") === isOther ? 0 : 1;
      this.gesture = { kind: "stroke", points: [place], label };
    } else if (workspace.tools.tool === "select") {
      workspace.current?.selectAt(place);
    } else {
      this.gesture = { kind: "click", from: at, to: at, label: isOther ? 0 : 1, isBox: false };
    }
    this.drawDraft();
  }

  pointerMove(event: PointerEvent): void {
    const at = this.place(event);
    this.mouse = at;
    this.isShift = event.shiftKey;
    const { gesture, workspace } = this;
    if (gesture?.kind === "pan") {
      this.setView(pan(this.view, at.x - gesture.last.x, at.y - gesture.last.y, workspace.size, this.canvasSize));
      gesture.last = at;
    } else if (gesture?.kind === "stroke") {
      for (const each of event.getCoalescedEvents?.() ?? []) gesture.points.push(toImage(this.view, this.place(each)));
      gesture.points.push(toImage(this.view, at));
    } else if (gesture?.kind === "click") {
      gesture.to = at;
      const distance = Math.hypot(at.x - gesture.from.x, at.y - gesture.from.y);
      if (distance > CLICK_PIXELS && gesture.label === 1) gesture.isBox = true;
    } else if (!this.spaceHeld) {
      workspace.hover(pixelAt(toImage(this.view, at), workspace.size));
    }
    this.drawDraft();
  }

  pointerUp(event: PointerEvent): void {
    const { gesture, workspace } = this;
    this.gesture = null;
    const at = this.place(event);
    if (gesture?.kind === "stroke") {
      workspace.current?.drawing.stroke(gesture.points, workspace.tools.brushRadius, gesture.label);
    } else if (gesture?.kind === "click" && gesture.isBox) {
      const box = dragBox(toImage(this.view, gesture.from), toImage(this.view, at), workspace.size);
      if (box) workspace.current?.drawing.dragBox(box);
    } else if (gesture?.kind === "click") {
      const pixel = pixelAt(toImage(this.view, gesture.from), workspace.size);
      if (pixel) workspace.current?.drawing.click(pixel, gesture.label);
    }
    this.drawDraft();
  }

  pointerCancel(): void {
    this.gesture = null;
    this.drawDraft();
  }

  pointerLeave(): void {
    if (this.gesture) return;
    this.mouse = null;
    this.workspace.hover(null);
    this.drawDraft();
  }

  wheel(event: WheelEvent): void {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
    this.setView(zoomAt(this.view, this.place(event), Math.exp(-event.deltaY * lines * 0.0016)));
  }

  private setView(view: View): void {
    this.view = view;
    // Where the image lies on the canvas: screen = image * scale + (x, y).
    Object.assign(this.element.dataset, { scale: view.scale, x: view.x, y: view.y });
    this.painter.setView(view);
  }

  private moveCrosshair(towards: "left" | "right" | "up" | "down", step: number): void {
    const { width, height } = this.workspace.size;
    const from = this.crosshair ?? { x: width / 2, y: height / 2 };
    const [dx, dy] = { left: [-step, 0], right: [step, 0], up: [0, -step], down: [0, step] }[towards];
    this.crosshair = {
      x: Math.min(width - 0.5, Math.max(0.5, from.x + dx)),
      y: Math.min(height - 0.5, Math.max(0.5, from.y + dy)),
    };
    const on = toScreen(this.view, this.crosshair);
    const [outX, outY] = [outside(on.x, this.canvasSize.width), outside(on.y, this.canvasSize.height)];
    if (outX || outY) this.setView(pan(this.view, -outX, -outY, this.workspace.size, this.canvasSize));
    this.workspace.hover(pixelAt(this.crosshair, this.workspace.size));
    this.workspace.say(`Cross at ${Math.floor(this.crosshair.x)}, ${Math.floor(this.crosshair.y)}.`);
    this.drawDraft();
  }

  private setCorner(): void {
    const { workspace, crosshair, corner } = this;
    if (!crosshair) return workspace.say("Move the cross with the arrow keys first.");
    if (!corner) {
      this.corner = crosshair;
      workspace.say("One corner is set; C sets the other.");
    } else {
      this.corner = null;
      const box = dragBox(corner, crosshair, workspace.size);
      if (box) workspace.current?.drawing.dragBox(box);
    }
    this.drawDraft();
  }

  private drawDraft(): void {
    const { workspace, gesture, mouse } = this;
    const drawing = workspace.current?.drawing;
    const actions = drawing?.session.actions ?? [];
    const isEmpty = drawing?.session.isEmpty ?? true;
    const isBrush = workspace.tools.tool === "brush" || workspace.tools.tool === "eraser";
    const clicks = actions
      .filter((action) => action.kind === "point")
      .map(({ coords: [x, y], label }) => ({ x, y, label, waiting: false }));
    const isDragged = gesture?.kind === "click" && gesture.isBox;
    this.painter.setDraft({
      mask: (isEmpty ? drawing?.preview : drawing?.session.mask) ?? null,
      isPreview: isEmpty,
      clicks: [...clicks, ...(drawing?.waitingClicks ?? []).map((click) => ({ ...click, waiting: true }))],
      box: actions.findLast((action) => action.kind === "box")?.coords ?? null,
      dragged: isDragged
        ? [toImage(this.view, gesture.from), toImage(this.view, gesture.to)]
        : this.corner && this.crosshair && [this.corner, this.crosshair],
      stroke:
        gesture?.kind === "stroke"
          ? { points: gesture.points, radius: workspace.tools.brushRadius, label: gesture.label }
          : null,
      brush:
        isBrush && mouse
          ? {
              at: toImage(this.view, mouse),
              radius: workspace.tools.brushRadius,
              label: (workspace.tools.tool === "brush") === this.isShift ? 0 : 1,
            }
          : null,
      crosshair: this.crosshair,
    });
  }

  private place(event: MouseEvent): Point {
    const bounds = this.element.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  }
}

export function ImageCanvas(props: { workspace: Workspace; onControl: (control: CanvasControl) => void }) {
  const { workspace } = props;
  const below = useRef<HTMLCanvasElement>(null);
  const above = useRef<HTMLCanvasElement>(null);
  const control = useRef<CanvasControl | null>(null);

  useEffect(() => {
    const element = above.current;
    if (!element || !below.current) return;
    const made = (control.current = new CanvasControl(workspace, element, below.current));
    props.onControl(made);
    const sizes = new ResizeObserver(([{ contentRect }]) => made.resize(contentRect));
    sizes.observe(element);
    const onWheel = (event: WheelEvent): void => made.wheel(event);
    element.addEventListener("wheel", onWheel, { passive: false });
    const unsubscribe = workspace.subscribe(() => made.sync());
    made.sync();
    return () => {
      sizes.disconnect();
      element.removeEventListener("wheel", onWheel);
      unsubscribe();
    };
  }, [workspace]);

  return (
    <div class="canvas">
      <canvas ref={below} class="below" aria-hidden="true" />
      <canvas
        ref={above}
        class={`above tool-${workspace.tools.tool}`}
        role="application"
        tabIndex={0}
        aria-label="Image to annotate"
        aria-describedby="status"
        aria-busy={(workspace.current?.drawing.busy ?? 0) > 0}
        data-phase={workspace.phase}
        data-task={workspace.current?.task.task_id ?? ""}
        data-tool={workspace.tools.tool}
        onPointerDown={(event) => control.current?.pointerDown(event)}
        onPointerMove={(event) => control.current?.pointerMove(event)}
        onPointerUp={(event) => control.current?.pointerUp(event)}
        onPointerCancel={() => control.current?.pointerCancel()}
        onPointerLeave={() => control.current?.pointerLeave()}
        onContextMenu={(event) => event.preventDefault()}
      />
    </div>
  );
}

/** Bottom to top: locked masks, flagged ones, accepted ones but for the one that is taken up; small over large. */
function layerMasks({ finished, drawing }: OpenTask): LayerMask[] {
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
  return [...locked(false), ...locked(true), ...accepted];
}

/** How far a place lies beyond the canvas, or within 20 pixels of its edge. */
function outside(value: number, room: number): number {
  return value < 20 ? value - 20 : value > room - 20 ? value - room + 20 : 0;
}
