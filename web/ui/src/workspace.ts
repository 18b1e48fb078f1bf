/**
 * One annotator at work: tasks come and go, masks are made, accepted and saved.
 *
 * Everything that waits for the model goes through one line (`inTurn`), so a click, an undo and an
 * accept take effect in the order they were made, however long the model takes.
 */

import { ActiveClock } from "./active_clock";
import { type Api, type MaskPayload, type Me, type Progress, Refused, type Task, Unreached } from "./api";
import { PageBackend, ServerBackend } from "./backends";
import { type BackendName, Decoder } from "./decoder";
import type { Point } from "./geometry";
import { area, contains, type Mask, strokeMask } from "./mask";
import { type Answer, toModel } from "./prompt";
import { decodeRle, type Size } from "./rle";
import { type Change, SaveQueue } from "./saving";
import { type Ask, MaskSession } from "./session";
import { Upscale } from "./upscale";

export type Tool = "click" | "brush" | "eraser" | "select";
export type Phase = "claiming" | "working" | "submitting" | "waiting";

export interface AcceptedMask {
  id: string;
  mask: Mask;
  payload: MaskPayload;
  /** Which of the colours; stays with the mask. */
  colour: number;
  /** Why the server will not take it. */
  refused: string | null;
}

export interface LockedMask {
  id: string;
  mask: Mask;
}

const POLL_MILLISECONDS = 5000;
const PROGRESS_MILLISECONDS = 60_000;

export class Workspace {
  phase: Phase = "claiming";
  task: Task | null = null;
  image: ImageBitmap | null = null;
  tool: Tool = "click";
  /** Radius in image pixels. */
  brushRadius = 12;
  accepted: AcceptedMask[] = [];
  locked: LockedMask[] = [];
  flagged = new Set<string>();
  /** The accepted mask that is taken up again. */
  editing: string | null = null;
  showOutlines = false;
  showUncovered = false;
  hidden = false;
  message = "";
  isAlarm = false;
  progress: Progress | null = null;
  /** Clicks that the model has not answered yet, pixels. */
  waitingClicks: { x: number; y: number; label: number }[] = [];
  preview: Mask | null = null;
  /** Actions that wait for the model. */
  busy = 0;
  readonly decoder: Decoder;
  readonly saves: SaveQueue;
  session: MaskSession | null = null;

  private clock = new ActiveClock();
  private upscale: Upscale | null = null;
  private turn: Promise<void> = Promise.resolve();
  private untouched: readonly unknown[] = [];
  private hovered: { pixel: Point; answer: Answer | null } | null = null;
  private lastDeleted: AcceptedMask | null = null;
  private earlierSeconds = 0;
  private renewing: ReturnType<typeof setTimeout> | undefined;
  private wakeUps = new Set<() => void>();
  private stopped = false;
  private nextColour = 0;
  private listeners = new Set<() => void>();

  constructor(
    private readonly api: Api,
    readonly me: Me,
    forcedDecoder: BackendName | null,
  ) {
    this.decoder = new Decoder({ page: new PageBackend(), server: new ServerBackend(api) }, forcedDecoder);
    this.decoder.onStatus = () => this.changed();
    this.saves = new SaveQueue(
      {
        send: (taskId, lease, change) => this.send(taskId, lease, change),
        changed: () => this.changed(),
        refused: ({ change }, error) => this.refused(change, error),
        passedOn: (taskId) => this.passedOn(taskId),
        sleep: (milliseconds) => this.sleep(milliseconds),
        now: () => Date.now(),
      },
      window.localStorage,
      `sa-engine:unsaved:${me.run}:${me.name}`,
    );
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  start(): void {
    void this.claimNext();
    void this.followProgress();
  }

  /** Somebody has signed in again after the server forgot who this is. */
  signedInAgain(): void {
    this.saves.resume();
    this.wake();
    if (this.task && this.phase === "working") this.renewSoon(0);
  }

  /** Gives the task back. False while something is not saved yet. */
  async leave(): Promise<boolean> {
    if (this.saves.count > 0) {
      this.say("Some work is not saved yet; signing out has to wait.", true);
      return false;
    }
    this.stopped = true;
    clearTimeout(this.renewing);
    if (this.task && this.phase === "working") await this.api.release(this.task).catch(() => {});
    return true;
  }

  /** The page goes away: whoever comes next, most likely this page again, need not wait for the lease. */
  abandon(): void {
    if (this.task && this.phase === "working" && !this.stopped) void this.api.release(this.task).catch(() => {});
  }

  get size(): Size {
    return { width: this.task?.width ?? 1, height: this.task?.height ?? 1 };
  }

  get canWork(): boolean {
    return this.phase === "working" && this.session !== null && this.image !== null;
  }

  /** A mask is in the making that neither was accepted nor dropped. */
  get hasDraft(): boolean {
    return this.session !== null && this.session.actions !== this.untouched && this.session.actions.length > 0;
  }

  get maskSeconds(): number {
    return this.session?.seconds ?? 0;
  }

  get imageSeconds(): number {
    return this.earlierSeconds + this.clock.seconds();
  }

  /** Any key, click or movement: the annotator is there. */
  input(): void {
    this.clock.input();
  }

  // ---- one mask

  click(pixel: Point, label: number): void {
    const session = this.session;
    if (!this.canWork || !session) return;
    const waiting = { ...pixel, label };
    this.waitingClicks = [...this.waitingClicks, waiting];
    this.inTurn(async () => {
      try {
        if (session !== this.session) return;
        const isKnown = label === 1 && session.actions.length === 0 && samePixel(this.hovered?.pixel, pixel);
        const known = isKnown ? (this.hovered?.answer ?? null) : null;
        await session.click(pixel, label, known);
        this.described("");
      } finally {
        this.waitingClicks = this.waitingClicks.filter((click) => click !== waiting);
        this.stopHover();
      }
    });
  }

  dragBox(box: readonly number[]): void {
    const session = this.session;
    if (!this.canWork || !session) return;
    this.inTurn(async () => {
      if (session !== this.session) return;
      await session.dragBox(box);
      this.stopHover();
      this.described("");
    });
  }

  /** `points`: image places. */
  stroke(points: readonly Point[], label: number): void {
    const session = this.session;
    if (!this.canWork || !session) return;
    const mask = strokeMask(points, this.brushRadius, this.size);
    this.inTurn(async () => {
      if (session !== this.session) return;
      if (session.predictedIou === null) {
        this.say("Click the object or draw a box around it first; strokes then correct the model's answer.");
      } else if (session.brush(mask, label)) {
        this.described("");
      }
    });
  }

  choose(output: number): void {
    this.inTurn(async () => {
      if (!this.session) return;
      if (this.session.choose(output)) this.described("");
      else this.say("Whole, part and subpart are offered after a first click alone.");
    });
  }

  undo(): void {
    this.inTurn(async () => {
      if (this.session?.undo()) return this.described("Taken back. ");
      if (this.lastDeleted && !this.editing) this.restore(this.lastDeleted);
    });
  }

  redo(): void {
    this.inTurn(async () => {
      if (this.session?.redo()) this.described("Done again. ");
    });
  }

  accept(): void {
    this.inTurn(async () => {
      const { session, task } = this;
      if (!session || !task || !this.canWork) return;
      if (session.actions.length === 0) return this.say("There is no mask to accept yet.");
      const payload = session.record();
      if (!payload) return this.say("The mask is empty; add to it, or drop it with Esc.");
      const again = this.accepted.find((accepted) => accepted.id === session.id);
      const colour = again ? again.colour : this.nextColour++;
      this.put({ id: session.id, mask: session.mask, payload, colour, refused: null });
      this.begin();
      const long = payload.seconds > task.max_mask_seconds;
      this.say(
        long
          ? `Accepted after ${Math.round(payload.seconds)} s. A mask of more than ${task.max_mask_seconds} s is ` +
              "the last of its image: submit with Ctrl+Enter."
          : `Accepted mask ${this.accepted.length}.`,
      );
    });
  }

  /** Drops the mask in the making. */
  clear(): void {
    if (!this.session) return;
    const had = this.hasDraft;
    const edited = this.editing;
    this.begin();
    this.say(edited ? "The mask stays as it was saved." : had ? "Dropped." : "");
  }

  /** What a first click at this pixel would give; null: the mouse is not over the image. */
  hover(pixel: Point | null): void {
    const { session, task } = this;
    if (!pixel || !session || !task || !this.canWork || this.tool !== "click" || this.busy || session.actions.length) {
      if (this.hovered) this.stopHover();
      return;
    }
    if (samePixel(this.hovered?.pixel, pixel)) return;
    const hovered = (this.hovered = { pixel, answer: null as Answer | null });
    const prompt = session.promptWith("point", [pixel.x, pixel.y], 1);
    void this.decoder.hover(toModel(prompt, this.size, task.image_size)).then((answer) => {
      if (!answer || session !== this.session || session.actions.length || !this.hovered) return;
      hovered.answer = answer;
      this.preview = session.preview(answer);
      this.changed();
    });
  }

  stopHover(): void {
    this.hovered = null;
    this.preview = null;
    this.decoder.dropHover();
    this.changed();
  }

  setTool(tool: Tool): void {
    this.tool = tool;
    this.stopHover();
  }

  resizeBrush(factor: number): void {
    this.brushRadius = Math.min(400, Math.max(1, Math.round(this.brushRadius * factor + (factor > 1 ? 0.5 : -0.5))));
    this.say(`Brush of ${2 * this.brushRadius} pixels.`);
  }

  toggle(what: "showOutlines" | "showUncovered"): void {
    this[what] = !this[what];
    this.changed();
  }

  hide(hidden: boolean): void {
    if (this.hidden === hidden) return;
    this.hidden = hidden;
    this.changed();
  }

  // ---- finished masks

  /** The smallest accepted mask here is taken up again. */
  selectAt(place: Point): void {
    const found = smallestAt(this.accepted, place);
    if (found) this.edit(found.id);
    else this.say("No accepted mask is here.");
  }

  edit(id: string): void {
    const accepted = this.accepted.find((one) => one.id === id);
    const { task, upscale } = this;
    if (!accepted || !task || !upscale || !this.canWork || this.editing === id) return;
    if (this.hasDraft) return this.say("A mask is in the making: accept it with Enter or drop it with Esc first.", true);
    this.stopHover();
    this.inTurn(async () => {
      const session = await MaskSession.resume(
        accepted.payload,
        new MaskSession(id, this.size, upscale, this.ask, this.seconds, accepted.payload.seconds),
      );
      if (this.task !== task || this.phase !== "working") return;
      this.session = session;
      this.untouched = session.actions;
      this.editing = id;
      this.tool = this.tool === "select" ? "click" : this.tool;
      this.described("Taken up again. ");
    });
  }

  deleteMask(id: string | null = this.editing): void {
    const found = this.accepted.find((accepted) => accepted.id === id);
    const task = this.task;
    if (!found || !task || this.phase !== "working") return this.say("No accepted mask is taken up.");
    if (this.editing === id) this.begin();
    this.accepted = this.accepted.filter((accepted) => accepted !== found);
    this.lastDeleted = found;
    this.saves.add(task.task_id, { kind: "delete", id: found.id });
    this.say("Deleted. Ctrl+Z brings it back.");
  }

  flagAt(place: Point | null): void {
    const found = place && smallestAt(this.locked, place);
    if (found) this.toggleFlag(found.id);
    else this.say("No locked mask is under the mouse.");
  }

  toggleFlag(id: string): void {
    if (!this.task || this.phase !== "working") return;
    const flagged = !this.flagged.has(id);
    this.flagged = new Set(this.flagged);
    if (flagged) this.flagged.add(id);
    else this.flagged.delete(id);
    this.saves.add(this.task.task_id, { kind: "flag", id, flagged });
    this.say(flagged ? "Flagged as wrong." : "The flag is taken back.");
  }

  // ---- the image

  submit(): void {
    this.inTurn(async () => {
      const { task } = this;
      if (!task || this.phase !== "working") return;
      if (this.hasDraft) {
        return this.say("A mask is not accepted yet: accept it with Enter or drop it with Esc.", true);
      }
      if (this.accepted.some((accepted) => accepted.refused)) {
        return this.say("The server refused a mask of the list: correct or delete it first.", true);
      }
      this.finish(task, (seconds) => this.api.submit(task, seconds), "Submitted.");
    });
  }

  skip(reason: string): void {
    this.inTurn(async () => {
      const { task } = this;
      if (!task || this.phase !== "working") return;
      this.finish(task, (seconds) => this.api.skip(task, seconds, reason), "Skipped.");
    });
  }

  private finish(task: Task, call: (seconds: number) => Promise<void>, done: string): void {
    const seconds = this.imageSeconds;
    this.phase = "submitting";
    this.stopHover();
    void (async () => {
      while (this.task === task && this.saves.of(task.task_id).length) {
        this.say("Saving what is not saved yet…");
        await this.sleep(200);
      }
      if (this.task !== task || this.phase !== "submitting") return;
      if (this.accepted.some((accepted) => accepted.refused)) {
        this.phase = "working";
        return this.say("The server refused a mask of the list: correct or delete it first.", true);
      }
      try {
        await this.untilReached(() => call(seconds));
      } catch (error) {
        if (error instanceof Refused && error.status === 409) return this.passedOn(task.task_id);
        this.phase = "working";
        return this.say(`Not submitted: ${textOf(error)}`, true);
      }
      this.saves.letGo(task.task_id);
      this.say(`${done} Fetching the next image…`);
      void this.refreshProgress();
      await this.claimNext();
    })();
  }

  private async claimNext(): Promise<void> {
    clearTimeout(this.renewing);
    this.phase = "claiming";
    this.changed();
    while (!this.stopped) {
      let task: Task | null;
      try {
        task = await this.untilReached(() => this.api.claim());
      } catch (error) {
        this.say(`No task could be claimed: ${textOf(error)}`, true);
        await this.sleep(POLL_MILLISECONDS);
        continue;
      }
      if (this.stopped) return;
      if (task) {
        try {
          return await this.take(task);
        } catch (error) {
          console.error(error);
          this.say(`This image cannot be opened: ${textOf(error)}`, true);
          await this.sleep(POLL_MILLISECONDS);
          continue;
        }
      }
      this.forgetTask();
      this.phase = "waiting";
      this.say("Nothing is left to annotate now. This page looks again every 5 s.");
      await this.sleep(POLL_MILLISECONDS);
    }
  }

  private async take(task: Task): Promise<void> {
    this.decoder.open(task);
    this.saves.hold(task);
    this.renewSoon((task.expires_in * 1000) / 3, task);
    let image: ImageBitmap | null = null;
    let trouble = "";
    try {
      image = await this.untilReached(async () => createImageBitmap(await this.api.image(task.image_id)));
    } catch (error) {
      trouble = `The image cannot be shown (${textOf(error)}): skip it with Ctrl+Space.`;
    }
    if (!this.saves.holds(task.task_id)) return this.claimNext(); // it has passed on meanwhile
    this.image = image;
    this.task = task;
    this.clock = new ActiveClock();
    this.upscale = new Upscale(this.size, task.image_size);
    this.locked = task.prefilled.map(({ id, segmentation }) => ({ id: String(id), mask: decodeRle(segmentation) }));
    this.flagged = new Set(task.flagged.map(String));
    this.nextColour = 0;
    this.lastDeleted = null;
    this.accepted = task.masks.map(({ mask_id, mask }) => this.asAccepted(mask_id, mask));
    for (const change of this.saves.of(task.task_id)) this.applyUnsaved(change);
    this.earlierSeconds = this.accepted.reduce((sum, { payload }) => sum + payload.seconds, 0);
    this.phase = "working";
    if (this.tool === "select") this.tool = "click";
    this.begin();
    this.say(trouble || taken(task, this.accepted.length), trouble !== "");
  }

  /** Changes of an earlier visit that never reached the server. */
  private applyUnsaved(change: Change): void {
    if (change.kind === "flag") {
      if (change.flagged) this.flagged.add(change.id);
      else this.flagged.delete(change.id);
      return;
    }
    this.accepted = this.accepted.filter((accepted) => accepted.id !== change.id);
    if (change.kind === "save") this.accepted.push(this.asAccepted(change.id, change.mask));
  }

  private asAccepted(id: string, payload: MaskPayload): AcceptedMask {
    return { id, mask: decodeRle(payload.segmentation), payload, colour: this.nextColour++, refused: null };
  }

  private forgetTask(): void {
    this.task = null;
    this.session = null;
    this.editing = null;
    this.image = null;
    this.accepted = [];
    this.locked = [];
    this.stopHover();
  }

  /** Someone else has the task, or will: what was saved stays with it. */
  private passedOn(taskId: Task["task_id"]): void {
    this.saves.letGo(taskId);
    if (this.task?.task_id !== taskId || this.phase === "claiming" || this.phase === "waiting") return;
    this.say("This image has passed on to someone else. What was saved is kept with it. Fetching another…", true);
    this.begin();
    void this.sleep(1500).then(() => this.claimNext());
    this.phase = "claiming";
    this.changed();
  }

  private renewSoon(milliseconds: number, task = this.task): void {
    clearTimeout(this.renewing);
    if (!task) return;
    this.renewing = setTimeout(async () => {
      try {
        this.renewSoon(((await this.api.renew(task)) * 1000) / 3, task);
      } catch (error) {
        const isStale = error instanceof Refused && error.status !== 401;
        if (isStale) this.passedOn(task.task_id);
        else this.renewSoon(Math.min(5000, (task.expires_in * 1000) / 3), task);
      }
    }, milliseconds);
  }

  // ---- helpers

  /** A new, empty mask; the tool stays armed. */
  private begin(): void {
    const { task, upscale } = this;
    this.editing = null;
    this.waitingClicks = [];
    this.hovered = null;
    this.preview = null;
    this.session =
      task && upscale
        ? new MaskSession(newId(), this.size, upscale, this.ask, this.seconds)
        : null;
    this.untouched = this.session?.actions ?? [];
    this.changed();
  }

  private put(accepted: AcceptedMask): void {
    const at = this.accepted.findIndex((old) => old.id === accepted.id);
    this.accepted = at < 0 ? [...this.accepted, accepted] : this.accepted.with(at, accepted);
    if (this.task) this.saves.add(this.task.task_id, { kind: "save", id: accepted.id, mask: accepted.payload });
  }

  private restore(deleted: AcceptedMask): void {
    this.lastDeleted = null;
    this.put({ ...deleted, refused: null });
    this.say("The deleted mask is back.");
  }

  private readonly ask: Ask = async (prompt) => {
    if (!this.task) throw new Error("no task is open");
    return this.decoder.ask(toModel(prompt, this.size, this.task.image_size));
  };

  private readonly seconds = (): number => this.clock.seconds();

  private inTurn(action: () => Promise<void>): void {
    this.busy++;
    this.changed();
    this.turn = this.turn
      .then(action)
      .catch((error) => this.say(`No answer from the model: ${textOf(error)}`, true))
      .finally(() => {
        this.busy--;
        this.changed();
      });
  }

  private async send(taskId: Task["task_id"], lease: string, change: Change): Promise<void> {
    if (change.kind === "save") await this.api.saveMask(taskId, lease, change.id, change.mask);
    else if (change.kind === "delete") await this.api.deleteMask(taskId, lease, change.id);
    else await this.api.flag(taskId, lease, change.id, change.flagged);
  }

  private refused(change: Change, error: Refused): void {
    if (change.kind === "save") {
      this.accepted = this.accepted.map((accepted) =>
        accepted.id === change.id ? { ...accepted, refused: error.message } : accepted,
      );
    }
    this.say(`The server refused the change: ${error.message}`, true);
  }

  /** Repeats a request until the server is there and knows who this is. */
  private async untilReached<Result>(request: () => Promise<Result>): Promise<Result> {
    for (let delay = 500; ; delay = Math.min(2 * delay, 10_000)) {
      try {
        return await request();
      } catch (error) {
        const isSignedOut = error instanceof Refused && error.status === 401;
        if (this.stopped || !(error instanceof Unreached || isSignedOut)) throw error;
        this.say(isSignedOut ? "Signed out." : `The server does not answer; trying again. (${textOf(error)})`, true);
        await this.sleep(isSignedOut ? 60_000 : delay);
      }
    }
  }

  /** Ends early when somebody signs in again. */
  private sleep(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.wakeUps.delete(done);
        resolve();
      };
      const timer = setTimeout(done, milliseconds);
      this.wakeUps.add(done);
    });
  }

  private wake(): void {
    for (const done of [...this.wakeUps]) done();
  }

  private async followProgress(): Promise<void> {
    while (!this.stopped) {
      await this.refreshProgress();
      await new Promise((resolve) => setTimeout(resolve, PROGRESS_MILLISECONDS));
    }
  }

  private async refreshProgress(): Promise<void> {
    try {
      this.progress = await this.api.progress();
      this.changed();
    } catch {
      // It is shown when it is known; nothing depends on it.
    }
  }

  private described(prefix: string): void {
    const session = this.session;
    if (!session) return;
    const names = ["whole", "part", "subpart"];
    const iou = session.predictedIou;
    const what = session.choices.length ? ` as ${names[session.chosen]} (1 2 3)` : "";
    const sure = iou === null ? "" : `, predicted IoU ${iou.toFixed(2)}`;
    this.say(`${prefix}${session.actions.length ? `Mask of ${area(session.mask)} pixels${what}${sure}.` : "Click an object."}`);
  }

  say(message: string, isAlarm = false): void {
    this.message = message;
    this.isAlarm = isAlarm;
    this.changed();
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }
}

function smallestAt<One extends { mask: Mask }>(masks: readonly One[], place: Point): One | null {
  const here = masks.filter(({ mask }) => contains(mask, place.x, place.y));
  return here.length ? here.reduce((a, b) => (area(b.mask) < area(a.mask) ? b : a)) : null;
}

function samePixel(a: Point | null | undefined, b: Point): boolean {
  return a?.x === b.x && a.y === b.y;
}

function taken(task: Task, saved: number): string {
  const before = saved ? ` ${saved} mask${saved === 1 ? " was" : "s were"} saved earlier.` : "";
  return task.stage === "semi_automatic"
    ? `Striped masks are done already: draw what they miss.${before}`
    : `Click an object.${before}`;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** 32 hex digits. */
function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
