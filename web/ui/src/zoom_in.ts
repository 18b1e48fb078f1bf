/**
 * A second look at small objects, as stages/zoom_in.py has it: where an answer lies in the crop
 * around its first prompt, the server shows the model that crop enlarged, and asks again.
 */

import { type Point, cropAround } from "./geometry";
import { type Box, iouOf, type Mask, shareWithin } from "./mask";
import { type Answer, type ModelPrompt, type Near, outputsOf, type Prompt, toModel } from "./prompt";
import { inTime } from "./retry";
import type { Size } from "./rle";
import type { Enlarges } from "./upscale";

/** Asks the server: the prompt in the crop's input frame, its mask input in the whole image's. */
export type LookCloser = (crop: Box, prompt: ModelPrompt) => Promise<Near>;

/** Share of an output's pixels within the crop from which on it is drawn again there. */
const FITS = 0.98;
/** The first answer stands when the second is not there by then. */
const NEAR_MILLISECONDS = 5_000;

export class ZoomIn {
  constructor(
    private readonly size: Size,
    private readonly lookCloser: LookCloser,
  ) {}

  /**
   * The answer, with a second one beside it where one of its outputs is small enough for the crop.
   *
   * `upscale`: how those outputs are made into masks. `isNeeded`: the first answer alone will not do.
   */
  async look(prompt: Prompt, far: Answer, upscale: Enlarges, isNeeded = false): Promise<Answer> {
    const crop = cropAround(centreOf(prompt), this.size);
    if (!placesOf(prompt).every((place) => holds(crop, place))) return far;
    const offers = upscale.offer(outputsOf(far), prompt);
    if (!offers.some(({ drawn }) => fits(upscale.enlarge(drawn).mask, crop))) return far;
    if (mendsBeyond(crop, offers, prompt)) return far;
    const size = { width: crop.x1 - crop.x0, height: crop.y1 - crop.y0 };
    const asked = toModel(within(prompt, crop), size, 4 * upscale.side);
    try {
      return { ...far, near: await inTime(this.lookCloser(crop, asked), NEAR_MILLISECONDS) };
    } catch (error) {
      if (isNeeded) throw error;
      console.warn("no second look", error);
      return far;
    }
  }
}

/** Whether regions answer a click beyond the crop, which shows nothing of what they have mended. */
export function mendsBeyond(crop: Box, offers: readonly { output: number | null }[], { points }: Prompt): boolean {
  return offers.some(({ output }) => output === null) && !holds(crop, points[points.length - 1]);
}

export function fits(mask: Mask, crop: Box): boolean {
  return shareWithin(mask, crop) >= FITS;
}

/**
 * Which mask of the second look each of the first one's is, null where it stands. The model's outputs are known by their
 * number; masks made of superpixels go by likeness, each once.
 */
export function drawnAgain(
  far: readonly Mask[],
  areSmall: readonly boolean[],
  near: readonly Mask[],
  areSnapped: boolean,
): (number | null)[] {
  const left = near.map((_, number) => number);
  return far.map((mask, number) => {
    if (!areSmall[number]) return null;
    if (!areSnapped) return number;
    const likeness = left.map((other) => iouOf(mask, near[other]));
    return left.splice(likeness.indexOf(Math.max(...likeness)), 1)[0];
  });
}

/** Of the object, as far as its first prompt tells. */
function centreOf({ points, box }: Prompt): Point {
  return box ? { x: (box[0] + box[2]) / 2, y: (box[1] + box[3]) / 2 } : points[0];
}

/** What belongs to the object for certain. */
function placesOf({ points, labels, box }: Prompt): Point[] {
  const added = points.filter((_, index) => labels[index] === 1);
  return box ? [...added, { x: box[0], y: box[1] }, { x: box[2], y: box[3] }] : added;
}

function holds({ x0, y0, x1, y1 }: Box, { x, y }: Point): boolean {
  return x0 <= x && x < x1 && y0 <= y && y < y1;
}

/** The prompt in the crop's frame, but for its mask input; clicks beyond it have had their say in the first look. */
export function within({ points, labels, box, maskInput }: Prompt, crop: Box): Prompt {
  const held = points.map((point) => holds(crop, point));
  return {
    points: points.filter((_, index) => held[index]).map(({ x, y }) => ({ x: x - crop.x0, y: y - crop.y0 })),
    labels: labels.filter((_, index) => held[index]),
    box: box && box.map((value, index) => value - (index % 2 ? crop.y0 : crop.x0)),
    maskInput,
    before: null, // the model alone answers further clicks
  };
}
