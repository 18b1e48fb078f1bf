/** One annotator at work: tasks come and go, and what is made of them is saved. */

import type { Api, Me, Progress, Task } from "./api";
import { Refused } from "./api";
import { PageBackend, ServerBackend } from "./backends";
import { type BackendName, Decoder } from "./decoder";
import type { Point } from "./geometry";
import { OpenTask } from "./open_task";
import { Sleeper, untilReached } from "./retry";
import type { Size } from "./rle";
import { type Change, SaveQueue } from "./saving";

export type Tool = "click" | "brush" | "eraser" | "select";
export type Phase = "claiming" | "working" | "submitting" | "waiting";

const POLL_MILLISECONDS = 5000;
const PROGRESS_MILLISECONDS = 60_000;

export class Workspace {
  phase: Phase = "claiming";
  /** The image on the desk; it stays in sight while the next one is fetched. */
  current: OpenTask | null = null;
  tool: Tool = "click";
  /** Radius in image pixels. */
  brushRadius = 12;
  showOutlines = false;
  showUncovered = false;
  hidden = false;
  message = "";
  isAlarm = false;
  progress: Progress | null = null;
  readonly decoder: Decoder;
  readonly saves: SaveQueue;

  private renewing: ReturnType<typeof setTimeout> | undefined;
  private readonly sleeper = new Sleeper();
  private stopped = false;
  private readonly listeners = new Set<() => void>();

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
        sleep: (milliseconds) => this.sleeper.sleep(milliseconds),
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

  /** The network is back, or somebody has signed in again after the server forgot who this is. */
  goOn(): void {
    this.saves.resume();
    this.sleeper.wake();
    if (this.current && this.phase === "working") this.renewSoon(0);
  }

  /** Gives the task back. False while something is not saved yet. */
  async leave(): Promise<boolean> {
    if (this.saves.count > 0) {
      this.say("Some work is not saved yet; signing out has to wait.", true);
      return false;
    }
    this.stopped = true;
    clearTimeout(this.renewing);
    if (this.current && this.phase === "working") await this.api.release(this.current.task).catch(() => {});
    return true;
  }

  /** The page goes away: whoever comes next, most likely this page again, need not wait for the lease. */
  abandon(): void {
    if (this.current && this.phase === "working" && !this.stopped) {
      void this.api.release(this.current.task).catch(() => {});
    }
  }

  get size(): Size {
    return { width: this.current?.task.width ?? 1, height: this.current?.task.height ?? 1 };
  }

  get canDraw(): boolean {
    return this.current?.canDraw ?? false;
  }

  // ---- tools

  setTool(tool: Tool): void {
    this.tool = tool;
    this.current?.drawing.stopHover();
    this.changed();
  }

  /** The mouse is over this pixel of the image; null: elsewhere. */
  hover(pixel: Point | null): void {
    this.current?.drawing.hover(this.tool === "click" ? pixel : null);
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

  // ---- tasks

  submit(): void {
    const { current } = this;
    current?.drawing.inTurn(async () => {
      if (current.drawing.isTouched) {
        return this.say("A mask is not accepted yet: accept it with Enter or drop it with Esc.", true);
      }
      this.finish(current, (seconds) => this.api.submit(current.task, seconds), "Submitted.");
    });
  }

  skip(reason: string): void {
    const { current } = this;
    if (current) this.finish(current, (seconds) => this.api.skip(current.task, seconds, reason), "Skipped.");
  }

  private finish(current: OpenTask, call: (seconds: number) => Promise<void>, done: string): void {
    if (current !== this.current || this.phase !== "working") return;
    const { task, finished, seconds } = current;
    const isMine = (): boolean => this.current === current && this.phase === "submitting";
    this.phase = "submitting";
    current.drawing.stopHover();
    void (async () => {
      while (isMine() && this.saves.of(task.task_id).length) {
        this.say("Saving what is not saved yet…");
        await this.sleeper.sleep(200);
      }
      if (!isMine()) return;
      if (finished.hasRefused) {
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
      try {
        const task = await this.untilReached(() => this.api.claim());
        if (this.stopped) return;
        if (task) return await this.take(task);
        this.current = null;
        this.phase = "waiting";
        this.say("Nothing is left to annotate now. This page looks again every 5 s.");
      } catch (error) {
        console.error(error);
        this.say(`No image could be opened: ${textOf(error)}`, true);
      }
      await this.sleeper.sleep(POLL_MILLISECONDS);
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
    const open = new OpenTask(task, image, this.saves.of(task.task_id), this.decoder, {
      say: (message, isAlarm) => this.say(message, isAlarm),
      changed: () => this.changed(),
      save: (change) => this.saves.add(task.task_id, change),
      isOpen: () => this.phase === "working" && this.current === open,
    });
    this.current = open;
    this.phase = "working";
    if (this.tool === "select") this.tool = "click";
    this.say(trouble || greeting(task, open.finished.accepted.length), trouble !== "");
  }

  /** Someone else has the task, or will: what was saved stays with it. */
  private passedOn(taskId: Task["task_id"]): void {
    this.saves.letGo(taskId);
    if (this.current?.task.task_id !== taskId || this.phase === "claiming" || this.phase === "waiting") return;
    this.current.drawing.begin();
    this.phase = "claiming";
    this.say("This image has passed on to someone else. What was saved is kept with it. Fetching another…", true);
    void this.sleeper.sleep(1500).then(() => this.claimNext());
  }

  private renewSoon(milliseconds: number, task = this.current?.task): void {
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

  private async send(taskId: Task["task_id"], lease: string, change: Change): Promise<void> {
    if (change.kind === "save") await this.api.saveMask(taskId, lease, change.id, change.mask);
    else if (change.kind === "delete") await this.api.deleteMask(taskId, lease, change.id);
    else await this.api.flag(taskId, lease, change.id, change.flagged);
  }

  private refused(change: Change, error: Refused): void {
    if (change.kind === "save") this.current?.finished.refuse(change.id, error.message);
    this.say(`The server refused the change: ${error.message}`, true);
  }

  private untilReached<Result>(request: () => Promise<Result>): Promise<Result> {
    return untilReached(
      request,
      (milliseconds) => this.sleeper.sleep(milliseconds),
      (trouble) => this.say(trouble, true),
    );
  }

  private async followProgress(): Promise<void> {
    while (!this.stopped) {
      await this.refreshProgress();
      await this.sleeper.sleep(PROGRESS_MILLISECONDS);
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

  say(message: string, isAlarm = false): void {
    this.message = message;
    this.isAlarm = isAlarm;
    this.changed();
  }

  private changed(): void {
    for (const listener of this.listeners) listener();
  }
}

function greeting(task: Task, saved: number): string {
  const before = saved ? ` ${saved} mask${saved === 1 ? " was" : "s were"} saved earlier.` : "";
  return task.stage === "semi_automatic"
    ? `Striped masks are done already: draw what they miss.${before}`
    : `Click an object.${before}`;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
