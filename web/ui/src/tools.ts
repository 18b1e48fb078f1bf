/** The tool in hand, and how masks are shown: the annotator's settings, whatever the image. */

export type Tool = "click" | "brush" | "eraser" | "select";

const LARGEST_RADIUS = 400;

export class Tools {
  tool: Tool = "click";
  /** Image pixels. */
  brushRadius = 12;
  showOutlines = false;
  showUncovered = false;
  hidden = false;
  /** Masks are made of superpixels, where an image has some. */
  wantsSnap = true;

  constructor(private readonly changed: () => void) {}

  take(tool: Tool): void {
    this.tool = tool;
    this.changed();
  }

  /** By at least a pixel. */
  resizeBrush(factor: number): void {
    const step = factor > 1 ? 0.5 : -0.5;
    const radius = Math.round(this.brushRadius * factor + step);
    this.brushRadius = Math.min(LARGEST_RADIUS, Math.max(1, radius));
    this.changed();
  }

  toggle(what: "showOutlines" | "showUncovered"): void {
    this[what] = !this[what];
    this.changed();
  }

  wantSnap(wanted: boolean): void {
    this.wantsSnap = wanted;
    this.changed();
  }

  hide(hidden: boolean): void {
    if (this.hidden === hidden) return;
    this.hidden = hidden;
    this.changed();
  }
}
