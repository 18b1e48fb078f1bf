/**
 * One mask in the making, as stages/assisted_manual.py has it: each click or box is answered by the
 * model, which is also shown its own previous answer; strokes have the last word. Every action keeps
 * its answer, so undo and redo ask nothing, and the log replays to the same mask.
 */

import type { Interaction, MaskPayload } from "./api";
import type { Point } from "./geometry";
import { givenLogits } from "./given";
import { emptyHistory, type History, push, redo, undo } from "./history";
import { type Box, boxOf, EMPTY, iouOf, isEmpty, type Mask, subtract, trim, union } from "./mask";
import { type Answer, firstClick, logitsOf, type Near, outputsOf, type Prompt } from "./prompt";
import { decodeRle, encodeRle, type Rle, type Size } from "./rle";
import { Upscales } from "./snapped_upscale";
import type { Enlarged, Enlarges } from "./upscale";
import { drawnAgain, fits, mendsBeyond, within } from "./zoom_in";

interface Offered {
  /** In the frame of the whole image; the next prompt's mask input, made when there is one. */
  logits: () => Float32Array;
  predictedIou: number;
  /** What the mask is made of; `crop`: null of the first look, at the whole image. */
  drawn: { logits: Float32Array; upscale: Enlarges; crop: Box | null };
}

/** What the model said to one click or box. */
interface Reply {
  /** Null of a mask that was given, as is the next. */
  answer: Answer | null;
  prompt: Prompt | null;
  snapped: boolean;
  /** Whole, part and subpart, or the single one. */
  offered: Offered[];
  chosen: number;
  mask: Mask;
  stabilityScore: number;
}

interface Action {
  kind: "point" | "box" | "brush";
  /** point: x, y; box and brush: x0, y0, x1, y1, both ends inclusive. Image pixels. */
  coords: readonly number[];
  label: number;
  seconds: number;
  /** Of a click or box. */
  reply: Reply | null;
  /** What the log says of the answer, until it is drawn anew. */
  logged: Logged | null;
  /** Of the brush: all pixels that the stroke went over. */
  stroke: Mask | null;
  /** After this action. */
  mask: Mask;
}

type Logged = Pick<Interaction, "output" | "predicted_iou" | "snapped" | "zoomed_in">;

export interface Asking {
  /** Masks are made of superpixels. */
  snaps: boolean;
  /** Whether there is a second look: null where it helps and comes in time. */
  zoomsIn: boolean | null;
  /** The first look's answer, when a hover at the same place has it already. */
  known: Answer | null;
}

export type Ask = (prompt: Prompt, asking: Asking) => Promise<Answer>;

export class MaskSession {
  private history: History<Action> = emptyHistory();
  private given: Reply | null = null;
  private marked: number;
  private lastCloser: Upscales | null = null;
  private readonly size: Size;
  private readonly began: number;

  /**
   * `id`: under which the mask is saved. `wantsSnap`: whether the annotator wants masks made of
   * superpixels. `clock`: active seconds, of any origin. `earlierSeconds`: spent on the mask before
   * it was taken up again.
   */
  constructor(
    readonly id: string,
    private readonly upscales: Upscales,
    private readonly wantsSnap: () => boolean,
    private readonly ask: Ask,
    private readonly clock: () => number,
    private readonly earlierSeconds = 0,
  ) {
    this.size = upscales.size;
    this.began = this.marked = clock();
  }

  /**
   * Takes up a saved mask where its log ends; the model is asked again for what the log lacks.
   *
   * `base`: where the log begins, of a mask that the model made with nobody there.
   */
  static async resume(saved: MaskPayload, session: MaskSession, base: Rle | null = null): Promise<MaskSession> {
    if (base) session.give(decodeRle(base), saved);
    for (const { kind, coords, label, seconds, stroke, answer, ...logged } of saved.interactions) {
      const action = { kind, coords, label, seconds, logged, mask: decodeRle(answer) };
      if (kind === "brush") {
        const drawn = stroke ? decodeRle(stroke) : EMPTY;
        session.history = push(session.history, { ...action, reply: null, stroke: drawn });
      } else {
        const prompt = session.promptWith(kind, coords, label);
        const asking = { snaps: logged.snapped ?? session.upscales.canSnap, zoomsIn: logged.zoomed_in, known: null };
        const again = await session.ask(prompt, asking);
        const reply = session.replyTo(again, prompt, logged.output, asking.snaps);
        session.history = push(session.history, { ...action, reply, stroke: null });
      }
    }
    session.keepScores(saved);
    return session;
  }

  get mask(): Mask {
    return this.last?.mask ?? this.given?.mask ?? EMPTY;
  }

  get actions(): readonly Action[] {
    return this.history.done;
  }

  /** Nothing was drawn, and nothing given. */
  get isEmpty(): boolean {
    return this.actions.length === 0 && this.given === null;
  }

  get canRedo(): boolean {
    return this.history.undone.length > 0;
  }

  /** Predicted IoU of each output that may be chosen; empty when there is no choice. */
  get choices(): readonly number[] {
    const offered = this.lastReply?.offered ?? [];
    return offered.length > 1 ? offered.map((output) => output.predictedIou) : [];
  }

  get chosen(): number {
    return this.lastReply?.chosen ?? 0;
  }

  get predictedIou(): number | null {
    const reply = this.lastReply;
    return reply ? reply.offered[reply.chosen].predictedIou : null;
  }

  /** Active time so far. */
  get seconds(): number {
    return this.earlierSeconds + Math.max(0, this.clock() - this.began);
  }

  /** The prompt that a further click or box makes. */
  promptWith(kind: "point" | "box", coords: readonly number[], label: number): Prompt {
    const clicks = this.actions.filter((action) => action.kind === "point");
    const boxes = this.actions.filter((action) => action.kind === "box");
    const points = clicks.map(({ coords: [x, y] }) => ({ x, y }));
    const labels = clicks.map((action) => action.label);
    const reply = this.lastReply;
    return {
      points: kind === "point" ? [...points, { x: coords[0], y: coords[1] }] : points,
      labels: kind === "point" ? [...labels, label] : labels,
      box: kind === "box" ? coords : (boxes[boxes.length - 1]?.coords ?? null),
      maskInput: reply ? reply.offered[reply.chosen].logits() : null,
      before: reply && kind === "point" ? this.mask : null,
    };
  }

  /** `known`: the answer, when a hover at the same place has it already. */
  async click(point: Point, label: number, known: Answer | null = null): Promise<void> {
    await this.prompt("point", [point.x, point.y], label, known);
  }

  async dragBox(box: readonly number[]): Promise<void> {
    await this.prompt("box", box, 1, null);
  }

  /** Paints (1) or erases (0) without asking the model. False when the stroke touches no pixel. */
  brush(stroke: Mask, label: number): boolean {
    const touched = trim(stroke);
    if (isEmpty(touched)) return false;
    const box = boxOf(touched);
    const action = {
      kind: "brush" as const,
      coords: [box.x0, box.y0, box.x1 - 1, box.y1 - 1],
      label,
      seconds: this.lap(),
      reply: null,
      logged: null,
      stroke: touched,
    };
    this.history = push(this.history, { ...action, mask: withStrokes(this.mask, [action]) });
    return true;
  }

  /** Whole, part or subpart. Later strokes stay on top. False when there is no such choice. */
  choose(output: number): boolean {
    const reply = this.lastReply;
    if (!reply || reply.offered.length === 1 || output >= reply.offered.length) return false;
    this.replaceLast({ ...reply, chosen: output, ...enlarged(reply.offered[output]) });
    return true;
  }

  /** Whether the model's last answer is made of superpixels; null without an answer. */
  get snapped(): boolean | null {
    const reply = this.lastReply;
    return reply?.answer ? reply.snapped : null;
  }

  /** The last answer's mask as it is wanted now, of superpixels or not. False when it is so already. */
  redraw(): boolean {
    const reply = this.lastReply;
    if (!reply?.answer || !reply.prompt || reply.snapped === this.wantsSnap()) return false;
    const again = this.replyTo(reply.answer, reply.prompt, null, this.wantsSnap());
    const likeness = again.offered.map((one) => iouOf(enlarged(one).mask, reply.mask));
    const chosen = likeness.indexOf(Math.max(...likeness)); // other masks may be offered, in another order
    this.replaceLast({ ...again, chosen, ...enlarged(again.offered[chosen]) });
    return true;
  }

  undo(): boolean {
    const before = this.history;
    this.history = undo(before);
    return this.history !== before;
  }

  redo(): boolean {
    const before = this.history;
    this.history = redo(before);
    return this.history !== before;
  }

  /** What is saved. Null without a mask, or without a click or box that the model answered. */
  record(): MaskPayload | null {
    const reply = this.lastReply;
    if (!reply || isEmpty(this.mask)) return null;
    return {
      segmentation: encodeRle(this.mask, this.size),
      predicted_iou: reply.offered[reply.chosen].predictedIou,
      stability_score: reply.stabilityScore,
      seconds: rounded(this.seconds),
      interactions: this.actions.map((action) => this.interactionOf(action)),
    };
  }

  /** What the model's answer to the first click of a mask, at a place, looks like before it is clicked. */
  preview(answer: Answer, place: Point): Mask {
    return this.replyTo(answer, firstClick(place), null, this.wantsSnap()).mask;
  }

  /** Those of its last answer, also where that could not be made again as it was. */
  private keepScores(saved: MaskPayload): void {
    const reply = this.lastReply;
    if (!reply) return;
    reply.offered[reply.chosen].predictedIou = saved.predicted_iou;
    reply.stabilityScore = saved.stability_score;
  }

  /** The mask that the log begins with, as if the model had just answered it. */
  private give(mask: Mask, saved: MaskPayload): void {
    const { size, upscales } = this;
    const logits = givenLogits(mask, size, upscales.imageSize);
    const { predicted_iou: predictedIou, stability_score: stabilityScore } = saved;
    const drawn = { logits, upscale: upscales.of(false), crop: null };
    const offered = [{ logits: () => logits, predictedIou, drawn }];
    this.given = { answer: null, prompt: null, snapped: false, offered, chosen: 0, mask, stabilityScore };
  }

  private async prompt(
    kind: "point" | "box",
    coords: readonly number[],
    label: number,
    known: Answer | null,
  ): Promise<void> {
    const seconds = this.lap();
    const prompt = this.promptWith(kind, coords, label);
    const snaps = this.snapped ?? this.wantsSnap(); // as the mask in sight
    const answer = await this.ask(prompt, { snaps, zoomsIn: null, known });
    const reply = this.replyTo(answer, prompt, null, snaps);
    const mask = withStrokes(reply.mask, this.actions);
    this.history = push(this.history, { kind, coords, label, seconds, reply, logged: null, stroke: null, mask });
  }

  private replyTo(answer: Answer, prompt: Prompt, output: number | null, snaps: boolean): Reply {
    const offered = this.offeredFor(answer, prompt, snaps);
    const best = offered.reduce((a, b) => (b.predictedIou > a.predictedIou ? b : a));
    const chosen = Math.min(output ?? offered.indexOf(best), offered.length - 1);
    return { answer, prompt, snapped: snaps && this.upscales.canSnap, offered, chosen, ...enlarged(offered[chosen]) };
  }

  /** Each as it was drawn from nearer, if it is small enough for the crop. */
  private offeredFor(answer: Answer, prompt: Prompt, snaps: boolean): Offered[] {
    const upscale = this.upscales.of(snaps);
    const offers = upscale.offer(outputsOf(answer), prompt);
    const far = offers.map(({ drawn: logits, predictedIou, output }) => {
      const drawn = { logits, upscale, crop: null };
      return { logits: () => (output === null ? this.givenAs(drawn) : logits), predictedIou, drawn };
    });
    const { near } = answer;
    if (!near || mendsBeyond(near.crop, offers, prompt)) return far; // it was asked for when S was off
    const { crop } = near;
    const masks = far.map((one) => enlarged(one).mask);
    const areSmall = masks.map((mask) => fits(mask, crop));
    if (!areSmall.includes(true)) return far;
    const closer = this.closer(near).of(snaps);
    const again = closer.offer(outputsOf(near), within(prompt, crop)).map(({ drawn: logits, predictedIou, output }) => {
      const drawn = { logits, upscale: closer, crop };
      const carried = (): Float32Array => (output === null ? this.givenAs(drawn) : logitsOf({ lowResMasks: near.carried }, output));
      return { logits: carried, predictedIou, drawn };
    });
    const drawn = drawnAgain(masks, areSmall, again.map((one) => enlarged(one).mask), snaps && this.upscales.canSnap);
    return far.map((one, index) => (drawn[index] === null ? one : again[drawn[index]]));
  }

  /** Of a region that the model has not made, as if it had. */
  private givenAs(drawn: Offered["drawn"]): Float32Array {
    return givenLogits(enlarged({ drawn }).mask, this.size, this.upscales.imageSize);
  }

  /** For as long as the crop stays the same. */
  private closer({ crop, superpixels }: Near): Upscales {
    const size = { width: crop.x1 - crop.x0, height: crop.y1 - crop.y0 };
    const last = this.lastCloser;
    if (last && last.superpixels === superpixels && sameSize(last.size, size)) return last;
    return (this.lastCloser = new Upscales(size, this.upscales.imageSize, superpixels));
  }

  /** The last click's or box's answer; later strokes stay on top. */
  private replaceLast(reply: Reply): void {
    const done = [...this.actions];
    const index = done.findLastIndex((action) => action.reply);
    let mask = withStrokes(reply.mask, done.slice(0, index));
    done[index] = { ...done[index], reply, logged: null, mask };
    for (let later = index + 1; later < done.length; later++) {
      mask = withStrokes(mask, [done[later]]);
      done[later] = { ...done[later], mask };
    }
    this.history = { done, undone: [] };
  }

  private interactionOf(action: Action): Interaction {
    const { kind, label, seconds, reply, stroke } = action;
    const made = action.logged ?? {
      output: reply ? reply.chosen : null,
      predicted_iou: reply ? reply.offered[reply.chosen].predictedIou : null,
      snapped: reply ? reply.snapped : null,
      zoomed_in: reply ? reply.answer?.near !== undefined : null,
    };
    return {
      kind,
      coords: [...action.coords],
      label,
      seconds: rounded(seconds),
      answer: encodeRle(action.mask, this.size),
      stroke: stroke ? encodeRle(stroke, this.size) : null,
      ...made,
    };
  }

  private get last(): Action | undefined {
    return this.actions[this.actions.length - 1];
  }

  private get lastReply(): Reply | null {
    return this.actions.findLast((action) => action.reply)?.reply ?? this.given;
  }

  /** Active seconds since the action before. */
  private lap(): number {
    const now = this.clock();
    const seconds = Math.max(0, now - this.marked);
    this.marked = now;
    return seconds;
  }
}

function enlarged({ drawn: { logits, upscale, crop } }: Pick<Offered, "drawn">): Enlarged {
  const { mask, stabilityScore } = upscale.enlarge(logits);
  if (!crop) return { mask, stabilityScore };
  return { mask: { ...mask, x: mask.x + crop.x0, y: mask.y + crop.y0 }, stabilityScore };
}

/** Strokes over a mask, in their order: painting undoes erasing, and erasing painting. */
function withStrokes(mask: Mask, actions: readonly Pick<Action, "stroke" | "label">[]): Mask {
  let result = mask;
  for (const { stroke, label } of actions) {
    if (stroke) result = label ? union(result, stroke) : subtract(result, stroke);
  }
  return trim(result);
}

function sameSize(a: Size, b: Size): boolean {
  return a.width === b.width && a.height === b.height;
}

function rounded(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}
