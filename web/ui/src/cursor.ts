/** The keyboard's cursor: a cross on the image, and the corner of a box that it has set. */

import { dragBox, type Point } from "./geometry";
import type { Size } from "./rle";

export type Towards = "left" | "right" | "up" | "down";

export class Cursor {
  /** An image place; null until an arrow key is pressed. */
  cross: Point | null = null;
  corner: Point | null = null;

  /** `step`: image pixels. From the middle of the image, where it begins. */
  move(towards: Towards, step: number, { width, height }: Size): Point {
    const from = this.cross ?? { x: width / 2, y: height / 2 };
    const [dx, dy] = { left: [-step, 0], right: [step, 0], up: [0, -step], down: [0, step] }[towards];
    this.cross = {
      x: Math.min(width - 0.5, Math.max(0.5, from.x + dx)),
      y: Math.min(height - 0.5, Math.max(0.5, from.y + dy)),
    };
    return this.cross;
  }

  /** One corner and then the other, which makes a box. */
  setCorner(size: Size): readonly number[] | null {
    const { cross, corner } = this;
    this.corner = corner ? null : cross;
    return corner && cross && dragBox(corner, cross, size);
  }

  clear(): void {
    this.cross = this.corner = null;
  }
}
