/**
 * The two canvases: below, the image and its finished masks; above, the mask in the making.
 *
 * Finished masks are drawn once into a layer of the image's size, of which only what changes is
 * drawn again; so 300 masks cost no more per frame than one.
 */

import { type Point, type View, visibleBox } from "./geometry";
import { changedBox, type Colour, drawMasks, type LayerMask, type Show } from "./layer";
import type { Box, Mask } from "./mask";
import { boxOf, common } from "./mask";
import type { Size } from "./rle";

/** What the annotator is doing right now. */
export interface Draft {
  mask: Mask | null;
  /** Not clicked yet: what a click here would give. */
  isPreview: boolean;
  /** Pixels. */
  clicks: readonly { x: number; y: number; label: number; waiting: boolean }[];
  /** Outermost pixels. */
  box: readonly number[] | null;
  /** Corners of a box that is being dragged, image places. */
  dragged: readonly [Point, Point] | null;
  stroke: { points: readonly Point[]; radius: number; label: number } | null;
  /** The brush under the mouse, image places. */
  brush: { at: Point; radius: number; label: number } | null;
  /** The keyboard's cursor, image places. */
  crosshair: Point | null;
}

const DRAFT: Colour = [64, 190, 255];
const PREVIEW: Colour = [255, 255, 255];
const ADD = "#3fdc7f";
const REMOVE = "#ff5d5d";
const INK = "#10151c";
/** From this scale on pixels are squares, for whoever corrects single ones. */
const PIXELS_SEEN = 6;

export class Painter {
  private readonly below: CanvasRenderingContext2D;
  private readonly above: CanvasRenderingContext2D;
  private readonly layer = new PaintedLayer();
  private readonly draftLayer = new PaintedLayer();
  private image: ImageBitmap | null = null;
  private size: Size = { width: 1, height: 1 };
  private canvasSize: Size = { width: 1, height: 1 };
  /** Device pixels for each of the page. */
  private ratio = 1;
  private view: View = { scale: 1, x: 0, y: 0 };
  private draft: Draft | null = null;
  private show: Show = "filled";
  private hidden = false;
  private dirty = { below: true, above: true };
  private frame = 0;

  constructor(
    private readonly belowCanvas: HTMLCanvasElement,
    private readonly aboveCanvas: HTMLCanvasElement,
  ) {
    this.below = context(belowCanvas);
    this.above = context(aboveCanvas);
  }

  resize(size: Size): void {
    this.canvasSize = size;
    this.sizeCanvases();
  }

  setImage(image: ImageBitmap | null, size: Size): void {
    if (image === this.image) return;
    this.image = image;
    this.size = size;
    const thickness = Math.max(1, Math.round(Math.max(size.width, size.height) / 900));
    this.layer.reset(size, thickness);
    this.draftLayer.reset(size, thickness);
    this.paint("below", "above");
  }

  setMasks(masks: readonly LayerMask[], show: Show): void {
    if (this.layer.draw(masks, show)) this.paint("below");
    this.show = show;
  }

  setHidden(hidden: boolean): void {
    if (hidden === this.hidden) return;
    this.hidden = hidden;
    this.paint("below", "above");
  }

  setView(view: View): void {
    this.view = view;
    this.paint("below", "above");
  }

  setDraft(draft: Draft): void {
    this.draft = draft;
    this.paint("above");
  }

  private paint(...canvases: ("below" | "above")[]): void {
    for (const canvas of canvases) this.dirty[canvas] = true;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.ratio !== window.devicePixelRatio) this.sizeCanvases(); // the window is on another screen
      if (this.dirty.below) this.paintBelow();
      if (this.dirty.above) this.paintAbove();
      this.dirty = { below: false, above: false };
    });
  }

  private sizeCanvases(): void {
    this.ratio = window.devicePixelRatio;
    for (const canvas of [this.belowCanvas, this.aboveCanvas]) {
      canvas.width = Math.max(1, Math.round(this.canvasSize.width * this.ratio));
      canvas.height = Math.max(1, Math.round(this.canvasSize.height * this.ratio));
    }
    this.paint("below", "above");
  }

  private paintBelow(): void {
    const to = this.below;
    clear(to);
    if (!this.image) return;
    this.toImageFrame(to);
    to.imageSmoothingEnabled = this.view.scale < PIXELS_SEEN;
    const seen = visibleBox(this.view, this.size, this.canvasSize);
    copy(to, this.image, seen);
    if (!this.hidden) copy(to, this.layer.canvas, seen);
  }

  private paintAbove(): void {
    const to = this.above;
    clear(to);
    const draft = this.draft;
    if (!draft || !this.image) return;
    if (draft.mask && !this.hidden) {
      const colour = draft.isPreview ? PREVIEW : DRAFT;
      const show = this.show === "outlines" ? "outlines" : "filled";
      const key = draft.isPreview ? "preview" : "draft";
      this.draftLayer.draw([{ key, mask: draft.mask, colour, striped: false }], show);
      this.toImageFrame(to);
      to.imageSmoothingEnabled = this.view.scale < PIXELS_SEEN;
      to.globalAlpha = draft.isPreview ? 0.65 : 1;
      const seen = visibleBox(this.view, this.size, this.canvasSize);
      copy(to, this.draftLayer.canvas, common(boxOf(draft.mask), seen));
      to.globalAlpha = 1;
    }
    this.paintTools(to, draft);
  }

  private paintTools(to: CanvasRenderingContext2D, draft: Draft): void {
    const { scale } = this.view;
    this.toImageFrame(to);
    if (draft.box) {
      const [x0, y0, x1, y1] = draft.box;
      this.rectangle(to, x0, y0, x1 + 1, y1 + 1);
    }
    if (draft.dragged) {
      const [a, b] = draft.dragged;
      this.rectangle(to, a.x, a.y, b.x, b.y);
    }
    if (draft.stroke) {
      const { points, radius, label } = draft.stroke;
      to.strokeStyle = to.fillStyle = label ? "rgb(64 190 255 / 60%)" : "rgb(255 93 93 / 60%)";
      to.lineWidth = 2 * radius;
      to.lineCap = to.lineJoin = "round";
      to.beginPath();
      points.forEach((point) => to.lineTo(point.x, point.y));
      if (points.length === 1) to.lineTo(points[0].x + 1e-3, points[0].y);
      to.stroke();
    }
    if (draft.brush) {
      to.beginPath();
      to.arc(draft.brush.at.x, draft.brush.at.y, draft.brush.radius, 0, 2 * Math.PI);
      this.line(to, draft.brush.label ? ADD : REMOVE);
    }
    for (const click of draft.clicks) {
      to.beginPath();
      to.arc(click.x + 0.5, click.y + 0.5, 5 / scale, 0, 2 * Math.PI);
      to.fillStyle = click.label ? ADD : REMOVE;
      to.globalAlpha = click.waiting ? 0.5 : 1;
      to.fill();
      to.globalAlpha = 1;
      to.strokeStyle = INK;
      to.lineWidth = 1.5 / scale;
      to.stroke();
    }
    if (draft.crosshair) {
      const { x, y } = draft.crosshair;
      to.beginPath();
      to.moveTo(x - 12 / scale, y);
      to.lineTo(x + 12 / scale, y);
      to.moveTo(x, y - 12 / scale);
      to.lineTo(x, y + 12 / scale);
      this.line(to, "#ffffff");
    }
  }

  private rectangle(to: CanvasRenderingContext2D, x0: number, y0: number, x1: number, y1: number): void {
    to.beginPath();
    to.rect(x0, y0, x1 - x0, y1 - y0);
    this.line(to, ADD);
  }

  /** Strokes the path, on dark so that it is seen on every ground. */
  private line(to: CanvasRenderingContext2D, colour: string): void {
    for (const [style, width] of [[INK, 3.5], [colour, 1.5]] as const) {
      to.strokeStyle = style;
      to.lineWidth = width / this.view.scale;
      to.stroke();
    }
  }

  private toImageFrame(to: CanvasRenderingContext2D): void {
    const { ratio, view: { scale, x, y } } = this;
    to.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
  }
}

/** Masks on a canvas of the image's size, drawn again only where they change. */
class PaintedLayer {
  readonly canvas = document.createElement("canvas");
  private readonly to = context(this.canvas);
  private masks: readonly LayerMask[] = [];
  private show: Show = "filled";
  private thickness = 1;

  reset(size: Size, thickness: number): void {
    this.canvas.width = size.width; // also clears it
    this.canvas.height = size.height;
    this.thickness = thickness;
    this.masks = [];
  }

  /** Whether anything looks different now. */
  draw(masks: readonly LayerMask[], show: Show): boolean {
    const box = show === this.show ? changedBox(this.masks, masks) : this.everything();
    this.masks = masks;
    this.show = show;
    if (!box || box.x1 <= box.x0) return false;
    const [width, height] = [box.x1 - box.x0, box.y1 - box.y0];
    const pixels = new Uint32Array(width * height);
    drawMasks(masks, box, show, this.thickness, pixels);
    this.to.putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), box.x0, box.y0);
    return true;
  }

  private everything(): Box {
    return { x0: 0, y0: 0, x1: this.canvas.width, y1: this.canvas.height };
  }
}

function context(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const found = canvas.getContext("2d");
  if (!found) throw new Error("this browser gives no canvas to draw on");
  return found;
}

/** A part of a picture to its place in the image. A browser may scale all that it is given. */
function copy(to: CanvasRenderingContext2D, picture: CanvasImageSource, { x0, y0, x1, y1 }: Box): void {
  if (x1 > x0 && y1 > y0) to.drawImage(picture, x0, y0, x1 - x0, y1 - y0, x0, y0, x1 - x0, y1 - y0);
}

function clear(to: CanvasRenderingContext2D): void {
  to.setTransform(1, 0, 0, 1, 0, 0);
  to.clearRect(0, 0, to.canvas.width, to.canvas.height);
}
