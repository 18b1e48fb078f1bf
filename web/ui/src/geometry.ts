/**
 * Frames: the screen (CSS pixels of the canvas), the image, and the model's input.
 *
 * On screen and in the image a coordinate is a place: pixel 3 reaches from 3.0 to 4.0. Prompts and
 * boxes that are logged name pixels by whole numbers.
 */

import type { Size } from "./rle";

export interface Point {
  x: number;
  y: number;
}

/** screen = image * scale + (x, y). */
export interface View {
  readonly scale: number;
  readonly x: number;
  readonly y: number;
}

/** The whole image in the middle of the canvas. */
export function fit(image: Size, canvas: Size, margin = 12): View {
  const room = { width: canvas.width - 2 * margin, height: canvas.height - 2 * margin };
  const scale = Math.max(1e-3, Math.min(room.width / image.width, room.height / image.height));
  return {
    scale,
    x: (canvas.width - image.width * scale) / 2,
    y: (canvas.height - image.height * scale) / 2,
  };
}

/** Zooms so that what lies under the cursor stays there. */
export function zoomAt(view: View, cursor: Point, factor: number, limits = { min: 0.05, max: 40 }): View {
  const scale = Math.min(limits.max, Math.max(limits.min, view.scale * factor));
  const ratio = scale / view.scale;
  return { scale, x: cursor.x - (cursor.x - view.x) * ratio, y: cursor.y - (cursor.y - view.y) * ratio };
}

/** Moves by screen pixels, but keeps some of the image on the canvas. */
export function pan(view: View, dx: number, dy: number, image: Size, canvas: Size, keep = 40): View {
  const within = (value: number, extent: number, room: number): number =>
    Math.min(room - keep, Math.max(keep - extent * view.scale, value));
  return {
    scale: view.scale,
    x: within(view.x + dx, image.width, canvas.width),
    y: within(view.y + dy, image.height, canvas.height),
  };
}

export function toImage(view: View, screen: Point): Point {
  return { x: (screen.x - view.x) / view.scale, y: (screen.y - view.y) / view.scale };
}

export function toScreen(view: View, image: Point): Point {
  return { x: image.x * view.scale + view.x, y: image.y * view.scale + view.y };
}

/** The image pixels that the canvas shows some of, ends exclusive. */
export function visibleBox(view: View, image: Size, canvas: Size): { x0: number; y0: number; x1: number; y1: number } {
  const [from, to] = [toImage(view, { x: 0, y: 0 }), toImage(view, { x: canvas.width, y: canvas.height })];
  return {
    x0: Math.max(0, Math.floor(from.x)),
    y0: Math.max(0, Math.floor(from.y)),
    x1: Math.min(image.width, Math.ceil(to.x)),
    y1: Math.min(image.height, Math.ceil(to.y)),
  };
}

/** The pixel at a place; null beyond the image. */
export function pixelAt(place: Point, image: Size): Point | null {
  const [x, y] = [Math.floor(place.x), Math.floor(place.y)];
  return x < 0 || y < 0 || x >= image.width || y >= image.height ? null : { x, y };
}

/** Outermost pixels of what was dragged over, both ends inclusive; null beyond the image. */
export function dragBox(a: Point, b: Point, image: Size): [number, number, number, number] | null {
  const [left, right] = a.x < b.x ? [a.x, b.x] : [b.x, a.x];
  const [top, bottom] = a.y < b.y ? [a.y, b.y] : [b.y, a.y];
  if (right <= 0 || bottom <= 0 || left >= image.width || top >= image.height) return null;
  const clamp = (value: number, size: number): number =>
    Math.min(size - 1, Math.max(0, Math.floor(value)));
  return [
    clamp(left, image.width),
    clamp(top, image.height),
    clamp(right, image.width),
    clamp(bottom, image.height),
  ];
}

/** Side of a crop over the image's longest side. */
const CROP_SHARE = 1 / 3;

/** The crop with a place in its middle, moved to lie in the image; ends exclusive. As stages/zoom_in.py. */
export function cropAround(centre: Point, image: Size): { x0: number; y0: number; x1: number; y1: number } {
  const longest = Math.max(1, Math.round(Math.max(image.width, image.height) * CROP_SHARE));
  const [width, height] = [Math.min(image.width, longest), Math.min(image.height, longest)];
  const x0 = Math.min(Math.max(0, Math.round(centre.x - width / 2)), image.width - width);
  const y0 = Math.min(Math.max(0, Math.round(centre.y - height / 2)), image.height - height);
  return { x0, y0, x1: x0 + width, y1: y0 + height };
}

/** Size of the image within the model's square of side `imageSize`. */
export function inputSize(image: Size, imageSize: number): Size {
  const scale = imageSize / Math.max(image.width, image.height);
  const side = (value: number): number => Math.max(1, Math.floor(value * scale + 0.5));
  return { width: side(image.width), height: side(image.height) };
}

export function toInput(point: Point, image: Size, imageSize: number): [number, number] {
  const input = inputSize(image, imageSize);
  return [(point.x * input.width) / image.width, (point.y * input.height) / image.height];
}
