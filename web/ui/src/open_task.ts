/** One image on the desk: its finished masks, the one in the making, and the time they took. */

import { ActiveClock } from "./active_clock";
import type { Task } from "./api";
import type { Decoder } from "./decoder";
import { type Aids, Drawing } from "./drawing";
import { FinishedMasks, smallestAt } from "./finished";
import type { Point } from "./geometry";
import type { Change } from "./saving";
import type { Voice } from "./voice";

export interface TaskHooks extends Voice {
  /** What has to reach the server. */
  save(change: Change): void;
  /** Whether the annotator may still change anything. */
  isOpen(): boolean;
}

export class OpenTask {
  readonly finished: FinishedMasks;
  readonly drawing: Drawing;
  /** Id of the mask that the mouse or the keyboard points at in the list. */
  pointed: string | null = null;
  private readonly clock = new ActiveClock();
  private readonly earlierSeconds: number;
  /** Masks that are accepted once the model has answered. */
  private accepting = 0;

  /** `image`: null when it cannot be shown. `unsaved`: changes that never reached the server. */
  constructor(
    readonly task: Task,
    readonly image: ImageBitmap | null,
    aids: Aids,
    unsaved: readonly Change[],
    decoder: Pick<Decoder, "ask" | "hover" | "dropHover">,
    private readonly hooks: TaskHooks,
  ) {
    this.finished = new FinishedMasks(task, unsaved);
    this.earlierSeconds = task.kind === "annotate" ? this.finished.seconds : 0; // a reviewer's time is their own
    const seconds = (): number => this.clock.seconds();
    this.drawing = new Drawing(task, decoder, seconds, () => this.canDraw, hooks, aids);
  }

  get canDraw(): boolean {
    return this.image !== null && this.hooks.isOpen();
  }

  /** A mask is neither accepted nor dropped, or will be when the model has answered. */
  get isUnfinished(): boolean {
    return this.drawing.isTouched || this.drawing.busy > 0;
  }

  /** Active time on the image. */
  get seconds(): number {
    return this.earlierSeconds + this.clock.seconds();
  }

  /** Any key, click or movement: the annotator is there. */
  input(): void {
    this.clock.input();
  }

  point(id: string | null): void {
    if (this.pointed === id) return;
    this.pointed = id;
    this.hooks.changed();
  }

  /** What there is to do. */
  greeting(): string {
    const { task, finished: { accepted: { length: saved } } } = this;
    if (task.note) return `Sent back by a reviewer: ${task.note}`;
    if (task.kind !== "annotate") return `${saved} mask${saved === 1 ? "" : "s"} to look at: correct, delete, add; Ctrl+Enter ends it.`;
    const before = saved ? ` ${saved} mask${saved === 1 ? " was" : "s were"} saved earlier.` : "";
    return task.stage === "semi_automatic"
      ? `Striped masks are done already: draw what they miss.${before}`
      : `Click an object.${before}`;
  }

  accept(): void {
    const { drawing, finished, task, hooks } = this;
    this.accepting++;
    const accepted = drawing.inTurn(async () => {
      const { session } = drawing;
      if (session.isEmpty) return hooks.say("There is no mask to accept yet.");
      const payload = session.record();
      if (!payload) return hooks.say("The mask is empty; add to it, or drop it with Esc.");
      finished.accept(session.id, session.mask, payload);
      hooks.save({ kind: "save", id: session.id, mask: payload });
      drawing.begin();
      const long = task.kind === "annotate" && payload.seconds > task.max_mask_seconds;
      hooks.say(
        long
          ? `Accepted after ${Math.round(payload.seconds)} s. A mask of more than ${task.max_mask_seconds} s is ` +
              "the last of its image: submit with Ctrl+Enter."
          : `Accepted mask ${finished.accepted.length}.`,
      );
    });
    void accepted.then(() => this.accepting--);
  }

  /** The last click, box or stroke; without any, the mask that was deleted last comes back, but for a key that is held. */
  undo(isHeld = false): void {
    const { drawing, finished, hooks } = this;
    void drawing.inTurn(async () => {
      if (drawing.session.undo()) return drawing.describe("Taken back. ");
      const deleted = drawing.editing || isHeld ? null : finished.bringBack();
      if (!deleted) return;
      hooks.save({ kind: "save", id: deleted.id, mask: deleted.payload });
      hooks.say("The deleted mask is back.");
    });
  }

  /** Drops the mask in the making: what comes after the one that is still to be accepted. */
  clear(): void {
    if (this.accepting) void this.drawing.inTurn(async () => this.drop());
    else this.drop();
  }

  private drop(): void {
    const { editing, isTouched } = this.drawing;
    this.drawing.drop();
    this.hooks.say(editing ? "The mask stays as it was saved." : isTouched ? "Dropped." : "");
  }

  /** The smallest accepted mask here is taken up again. False when there is none. */
  selectAt(place: Point): boolean {
    const found = smallestAt(this.finished.accepted, place);
    if (found) this.edit(found.id);
    else this.hooks.say("No accepted mask is here.");
    return found !== null;
  }

  edit(id: string): void {
    const { drawing, finished, hooks } = this;
    void drawing.inTurn(async () => {
      const accepted = finished.find(id);
      if (!accepted || drawing.editing === id) return;
      if (drawing.isTouched) {
        return hooks.say("A mask is in the making: accept it with Enter or drop it with Esc first.", true);
      }
      await drawing.resume(accepted).catch((error) => {
        drawing.drop(); // or the clicks that wait for it would begin another mask
        throw error;
      });
      if (!finished.find(id)) drawing.drop(); // it was deleted meanwhile
    });
  }

  deleteMask(id: string | null = this.drawing.editing): void {
    const found = this.finished.find(id);
    if (!found || !this.hooks.isOpen()) return this.hooks.say("No accepted mask is taken up.");
    if (this.drawing.editing === found.id) this.drawing.drop();
    if (this.pointed === found.id) this.point(null); // no mouse leaves an entry that is gone
    this.finished.delete(found.id);
    this.hooks.save({ kind: "delete", id: found.id });
    this.hooks.say("Deleted. Ctrl+Z brings it back.");
  }

  flagAt(place: Point | null): void {
    const found = place && smallestAt(this.finished.locked, place);
    if (found) this.toggleFlag(found.id);
    else this.hooks.say("No locked mask is under the mouse.");
  }

  toggleFlag(id: string): void {
    if (!this.hooks.isOpen()) return;
    const flagged = !this.finished.flagged.has(id);
    this.finished.flag(id, flagged);
    this.hooks.save({ kind: "flag", id, flagged });
    this.hooks.say(flagged ? "Flagged as wrong." : "The flag is taken back.");
  }
}
