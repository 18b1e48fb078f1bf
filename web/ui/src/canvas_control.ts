/** What is seen of the image, and what the mouse and the keyboard do on it. */

import { Cursor, type Towards } from "./cursor";
import { dragBox, fit, pan, pixelAt, type Point, toImage, toScreen, type View, zoomAt } from "./geometry";
import { begin, dragTo, type Gesture } from "./gesture";
import type { Command } from "./keys";
import type { Show } from "./layer";
import { Painter } from "./painter";
import type { Size } from "./rle";
import { draftOf, finishedMasks } from "./shown";
import type { Workspace } from "./workspace";

/** Everything about the canvas that no other part of the page needs to know. */
export class CanvasControl {
  private view: View = { scale: 1, x: 0, y: 0 };
  private isFitted = true;
  private readonly painter: Painter;
  private readonly cursor = new Cursor();
  private gesture: Gesture | null = null;
  /** On the canvas; null while the mouse is elsewhere. */
  private mouse: Point | null = null;
  private isShift = false;
  private spaceHeld = false;
  private shownImage: ImageBitmap | null = null;
  private canvasSize: Size = { width: 1, height: 1 };

  constructor(
    private readonly workspace: Workspace,
    private readonly element: HTMLCanvasElement,
    below: HTMLCanvasElement,
  ) {
    this.painter = new Painter(below, element);
  }

  /** What lies in the middle stays there, unless all is shown. */
  resize(size: Size): void {
    const [dx, dy] = [(size.width - this.canvasSize.width) / 2, (size.height - this.canvasSize.height) / 2];
    this.canvasSize = size;
    this.painter.resize(size);
    if (this.isFitted) this.fit();
    else this.setView(pan(this.view, dx, dy, this.workspace.size, size));
  }

  fit(): void {
    this.setView(fit(this.workspace.size, this.canvasSize));
    this.isFitted = true;
  }

  /** Shows what the workspace holds now. */
  sync(): void {
    const { workspace } = this;
    const { current, tools } = workspace;
    const image = current?.image ?? null;
    if (image !== this.shownImage) {
      this.shownImage = image;
      this.gesture = null; // it was made on the image before
      this.cursor.clear();
      this.painter.setImage(image, workspace.size);
      this.fit();
    }
    const show: Show = tools.showUncovered ? "uncovered" : tools.showOutlines ? "outlines" : "filled";
    this.painter.setMasks(current ? finishedMasks(current) : [], show);
    this.painter.setHidden(tools.hidden);
    this.drawDraft();
  }

  /** Commands that concern the view, the keyboard's cursor or a gesture. False for others. */
  run(command: Command, isShift: boolean): boolean {
    const { workspace, cursor } = this;
    switch (command) {
      case "fit":
        this.fit();
        return true;
      case "zoomIn":
      case "zoomOut":
        this.zoom(this.mouse, command === "zoomIn" ? 1.25 : 0.8);
        return true;
      case "pan":
        this.spaceHeld = true;
        this.element.classList.add("grab");
        return true;
      case "left":
      case "right":
      case "up":
      case "down":
        this.moveCursor(command, (isShift ? 25 : 5) / this.view.scale);
        return true;
      case "add":
      case "remove": {
        const pixel = cursor.cross && pixelAt(cursor.cross, workspace.size);
        if (pixel) workspace.current?.drawing.click(pixel, command === "add" ? 1 : 0);
        else workspace.voice.say("Move the cross with the arrow keys first.");
        return true;
      }
      case "corner":
        this.setCorner();
        return true;
      case "flag":
        workspace.current?.flagAt(this.mouse ? toImage(this.view, this.mouse) : cursor.cross);
        return true;
      case "clear":
        return this.forgetGesture();
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
    const at = this.follow(event);
    this.cursor.clear();
    this.element.setPointerCapture(event.pointerId);
    if (this.gesture) return;
    const { workspace } = this;
    const place = toImage(this.view, at);
    if (event.button === 1 || (event.button === 0 && this.spaceHeld)) {
      this.gesture = { kind: "pan", last: at };
    } else if (workspace.canDraw && (event.button === 0 || event.button === 2)) {
      const { tool } = workspace.tools;
      this.gesture = begin(tool, event.button === 2 || event.shiftKey, place);
      // The next click corrects the mask that this one has taken up.
      if (tool === "select" && workspace.current?.selectAt(place)) workspace.takeTool("click");
    }
    this.drawDraft();
  }

  pointerMove(event: PointerEvent): void {
    const at = this.follow(event);
    const { gesture, workspace } = this;
    const place = toImage(this.view, at);
    if (gesture?.kind === "pan") {
      this.setView(pan(this.view, at.x - gesture.last.x, at.y - gesture.last.y, workspace.size, this.canvasSize));
      gesture.last = at;
    } else if (gesture?.kind === "stroke") {
      for (const each of event.getCoalescedEvents?.() ?? []) gesture.points.push(toImage(this.view, this.on(each)));
      gesture.points.push(place);
    } else if (gesture?.kind === "click") {
      dragTo(gesture, place, this.view);
    } else if (!this.spaceHeld) {
      workspace.hover(pixelAt(place, workspace.size));
    }
    this.drawDraft();
  }

  pointerUp(event: PointerEvent): void {
    const { gesture, workspace } = this;
    const { size } = workspace;
    const drawing = workspace.current?.drawing;
    this.gesture = null;
    if (gesture?.kind === "stroke") {
      drawing?.stroke(gesture.points, workspace.tools.brushRadius, gesture.label);
    } else if (gesture?.kind === "click" && gesture.isBox) {
      const box = dragBox(gesture.from, toImage(this.view, this.on(event)), size);
      if (box) drawing?.dragBox(box);
    } else if (gesture?.kind === "click") {
      const pixel = pixelAt(gesture.from, size);
      if (pixel) drawing?.click(pixel, gesture.label);
    }
    this.drawDraft();
  }

  pointerCancel(): void {
    this.forgetGesture();
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
    this.zoom(this.on(event), Math.exp(-event.deltaY * lines * 0.0016));
  }

  /** At a place on the canvas, or at its middle. */
  private zoom(at: Point | null, factor: number): void {
    const { width, height } = this.canvasSize;
    const zoomed = zoomAt(this.view, at ?? { x: width / 2, y: height / 2 }, factor);
    this.setView(pan(zoomed, 0, 0, this.workspace.size, this.canvasSize));
  }

  private setView(view: View): void {
    this.view = view;
    this.isFitted = false;
    // Where the image lies on the canvas: screen = image * scale + (x, y).
    Object.assign(this.element.dataset, { scale: view.scale, x: view.x, y: view.y });
    this.painter.setView(view);
    this.drawDraft(); // the brush is still under the mouse
  }

  private moveCursor(towards: Towards, step: number): void {
    const { workspace, canvasSize } = this;
    const { size } = workspace;
    const cross = this.cursor.move(towards, step, size);
    const on = toScreen(this.view, cross);
    const [outX, outY] = [outside(on.x, canvasSize.width), outside(on.y, canvasSize.height)];
    if (outX || outY) this.setView(pan(this.view, -outX, -outY, size, canvasSize));
    workspace.hover(pixelAt(cross, size));
    workspace.voice.say(`Cross at ${Math.floor(cross.x)}, ${Math.floor(cross.y)}.`);
    this.drawDraft();
  }

  private setCorner(): void {
    const { workspace, cursor } = this;
    if (!cursor.cross) return workspace.voice.say("Move the cross with the arrow keys first.");
    const box = cursor.setCorner(workspace.size);
    if (box) workspace.current?.drawing.dragBox(box);
    else workspace.voice.say("One corner is set; C sets the other.");
    this.drawDraft();
  }

  /** Whether there was one, or a corner of a box. */
  private forgetGesture(): boolean {
    const had = this.gesture !== null || this.cursor.corner !== null;
    this.gesture = this.cursor.corner = null;
    this.drawDraft();
    return had;
  }

  private drawDraft(): void {
    const { workspace, gesture, cursor, mouse, isShift } = this;
    this.painter.setDraft(draftOf(workspace.current, workspace.tools, { gesture, cursor, mouse, isShift }, this.view));
  }

  /** Where the mouse is now. */
  private follow(event: PointerEvent): Point {
    this.mouse = this.on(event);
    this.isShift = event.shiftKey;
    return this.mouse;
  }

  private on(event: MouseEvent): Point {
    const bounds = this.element.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  }
}

/** How far a place lies beyond the canvas, or within 20 pixels of its edge. */
function outside(value: number, room: number): number {
  return value < 20 ? value - 20 : value > room - 20 ? value - room + 20 : 0;
}
