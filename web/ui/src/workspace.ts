/**
 * One annotator at work: tasks come and go, and what is made of them is saved.
 *
 * What is done to the image on the desk is in open_task.ts, leases in supply.ts, what waits to be saved
 * in saving.ts, what was handed in in hand_ins.ts.
 */

import type { Api, Me, Progress, Task, TaskKind, Verdict } from "./api";
import { Refused } from "./api";
import { PageBackend, ServerBackend } from "./backends";
import { type BackendName, Decoder } from "./decoder";
import type { Aids } from "./drawing";
import type { Point } from "./geometry";
import { HandIns } from "./hand_ins";
import { TaskLocks } from "./locks";
import type { Box } from "./mask";
import { OpenTask } from "./open_task";
import type { ModelPrompt, Near } from "./prompt";
import { inTime, Sleeper, untilReached } from "./retry";
import type { Size } from "./rle";
import { SaveQueue, sendChange, type Waiting } from "./saving";
import type { Superpixels } from "./snapped_upscale";
import { type HeldTask, TaskSupply } from "./supply";
import { type Tool, Tools } from "./tools";
import { PageVoice } from "./voice";

export type Phase = "claiming" | "working" | "submitting" | "waiting" | "away";

const POLL_MILLISECONDS = 5000;
const PROGRESS_MILLISECONDS = 20_000;
/** An image is shown without superpixels then: they only make masks better. */
const SUPERPIXELS_MILLISECONDS = 10_000;
const AWAY_SECONDS = 20 * 60;
const REFUSED = "The server refused a mask of the list: correct or delete it first.";
const UNFINISHED = "A mask is not accepted yet: accept it with Enter or drop it with Esc.";

export class Workspace {
  phase: Phase = "claiming";
  /** The image on the desk; it stays in sight while the next one is fetched. */
  current: OpenTask | null = null;
  readonly voice = new PageVoice();
  readonly tools = new Tools(() => this.voice.changed());
  progress: Progress | null = null;
  readonly decoder: Decoder;
  readonly saves: SaveQueue;

  private readonly supply: TaskSupply;
  private readonly handIns: HandIns;
  private lastInput = performance.now();
  private readonly sleeper = new Sleeper();
  private stopped = false;
  private near: { key: string; superpixels: Promise<Superpixels> } | null = null;

  constructor(
    private readonly api: Api,
    readonly me: Me,
    private readonly kind: TaskKind,
    forcedDecoder: BackendName | null,
  ) {
    this.decoder = new Decoder({ page: new PageBackend(), server: new ServerBackend(api) }, forcedDecoder);
    this.decoder.onStatus = () => this.voice.changed();
    this.saves = new SaveQueue(
      {
        send: (taskId, lease, change) => sendChange(api, taskId, lease, change),
        changed: () => this.voice.changed(),
        refused: (waiting, error) => this.refused(waiting, error),
        passedOn: (taskId) => this.passedOn(taskId),
        sleep: (milliseconds) => this.sleeper.sleep(milliseconds),
        now: () => Date.now(),
      },
      window.localStorage,
      `sa-engine:unsaved:${me.run_id}:${me.name}`,
    );
    this.supply = new TaskSupply(api, kind, new TaskLocks(me.run_id, navigator.locks), {
      image: (task) => this.untilReached(async () => createImageBitmap(await api.image(task.image_id))),
      superpixels: async (task) => (task.snap ? this.superpixelsOf(task) : null),
      prepare: (task) => this.decoder.prepare(task),
      lost: (taskId) => this.passedOn(taskId),
    });
    this.handIns = new HandIns(
      this.supply,
      this.saves,
      (request) => this.untilReached(request),
      (task, error) => this.voice.say(`${task.file_name} was not handed in and goes back with its masks: ${textOf(error)}`, true),
    );
  }

  /** What is on its way to the server: changes, and images that were handed in. */
  get unsaved(): number {
    return this.saves.count + this.handIns.tasks.size;
  }

  start(): void {
    void this.openNext();
    void this.followProgress();
  }

  /** The network is back, or somebody has signed in again after the server forgot who this is. */
  goOn(): void {
    this.saves.resume();
    this.sleeper.wake();
    this.supply.renewAll();
  }

  /** Any key, click or movement: the annotator is there. */
  input(): void {
    if (this.idleSeconds > AWAY_SECONDS) this.supply.renewAll();
    this.lastInput = performance.now();
    this.current?.input();
    if (this.phase === "away") void this.openNext();
  }

  /** Gives the tasks back. False while something is not saved yet, or neither accepted nor dropped. */
  async leave(): Promise<boolean> {
    if (this.current?.finished.hasRefused) {
      this.voice.say(REFUSED, true);
      return false;
    }
    if (this.unsaved > 0) {
      this.voice.say("Some work is not saved yet: leave when it is.", true);
      return false;
    }
    if (this.current?.isUnfinished) {
      this.voice.say(UNFINISHED, true);
      return false;
    }
    this.stopped = true;
    await this.supply.giveBackAll(this.handIns.tasks);
    return true;
  }

  /** The page goes away: whoever comes next, most likely this page again, need not wait for the leases. */
  abandon(): void {
    void this.supply.giveBackAll(this.handIns.tasks);
  }

  get size(): Size {
    return { width: this.current?.task.width ?? 1, height: this.current?.task.height ?? 1 };
  }

  get canDraw(): boolean {
    return this.current?.canDraw ?? false;
  }

  /** The mouse is over this pixel of the image; null: elsewhere. */
  hover(pixel: Point | null): void {
    this.current?.drawing.hover(this.tools.tool === "click" ? pixel : null);
  }

  takeTool(tool: Tool): void {
    this.current?.drawing.stopHover();
    this.tools.take(tool);
  }

  submit(): void {
    this.whenReady((current) => {
      void this.finish(current, (seconds) => this.api.submit(current.task, seconds), "Submitted.");
    });
  }

  review(verdict: Verdict, note: string): void {
    this.whenReady((current) => {
      void this.finish(current, (seconds) => this.api.review(current.task, seconds, verdict, note), "Handed in.");
    });
  }

  /** `then`: once every action before has its answer, unless a mask is neither accepted nor dropped. */
  whenReady(then: (current: OpenTask) => void): void {
    const { current } = this;
    if (current && !current.image) return then(current);
    void current?.drawing.inTurn(async () => {
      if (!current.drawing.isTouched) return then(current);
      this.voice.say(UNFINISHED, true);
    });
  }

  skip(reason: string): void {
    const { current } = this;
    if (current) void this.finish(current, (seconds) => this.api.skip(current.task, seconds, reason), "Skipped.");
  }

  /** Once everything is saved, the next image is opened; the server learns meanwhile that this one is done. */
  private async finish(current: OpenTask, call: (seconds: number) => Promise<void>, done: string): Promise<void> {
    if (current !== this.current || this.phase !== "working") return;
    const { task, finished, seconds } = current;
    const isMine = (): boolean => this.current === current && this.phase === "submitting";
    this.phase = "submitting";
    current.drawing.stopHover();
    while (isMine() && this.saves.of(task.task_id).some(({ refused }) => refused === undefined)) {
      this.voice.say("Saving what is not saved yet…");
      await this.sleeper.sleep(200);
    }
    if (!isMine()) return;
    if (finished.hasRefused) {
      this.phase = "working";
      return this.voice.say(REFUSED, true);
    }
    void this.handIns.send(task, () => call(seconds)).then(() => this.refreshProgress());
    this.voice.say(`${done} Fetching the next image…`);
    await this.openNext();
  }

  private async openNext(): Promise<void> {
    this.phase = "claiming";
    this.voice.changed();
    while (!this.stopped) {
      try {
        const held = await this.untilReached(() => this.supply.next());
        if (this.stopped) return;
        if (held && (await this.open(held))) return this.tendSupply();
        if (!held) {
          this.phase = "waiting";
          this.show(null);
          this.voice.say(`Nothing is left to ${this.kind} now. This page looks again every 5 s.`);
          await this.sleeper.sleep(POLL_MILLISECONDS);
        }
      } catch (error) {
        console.error(error);
        this.voice.say(`No image could be opened: ${textOf(error)}`, true);
        await this.sleeper.sleep(POLL_MILLISECONDS);
      }
    }
  }

  /** False when the task has passed on meanwhile. */
  private async open({ task, image, superpixels }: HeldTask): Promise<boolean> {
    this.decoder.open(task);
    const outdated = this.saves.hold(task);
    const unsaved = this.saves.of(task.task_id); // now: it is on its way to the server
    let trouble = "";
    const shown = await image.catch((error) => {
      trouble = `The image cannot be shown (${textOf(error)}): skip it with Ctrl+Space.`;
      return null;
    });
    const again = superpixels.catch(() => this.superpixelsOf(task));
    const cutUp = await inTime(again, SUPERPIXELS_MILLISECONDS).catch((error) => {
      trouble ||= `Masks will not follow the edges of this image: ${textOf(error)}`;
      return null;
    });
    if (!this.saves.holds(task.task_id)) {
      shown?.close();
      return false;
    }
    const aids: Aids = {
      lookCloser: (crop, prompt) => this.lookCloser(task.image_id, cutUp !== null, crop, prompt),
      superpixels: cutUp,
      wantsSnap: () => this.tools.wantsSnap,
      wantSnap: (wanted) => this.tools.wantSnap(wanted),
    };
    const open = new OpenTask(task, shown, aids, unsaved.map(({ change }) => change), this.decoder, {
      say: (message, isAlarm) => this.voice.say(message, isAlarm),
      changed: () => this.voice.changed(),
      save: (change) => this.saves.add(task.task_id, change),
      isOpen: () => this.phase === "working" && this.current === open,
    });
    for (const { change, refused } of unsaved) if (refused !== undefined) open.finished.refuse(change.id, refused);
    this.phase = "working";
    this.show(open);
    if (this.tools.tool === "select") this.tools.take("click");
    if (outdated) trouble ||= `${changes(outdated)} of yours came too late: somebody else has had this image since.`;
    this.voice.say(trouble || open.greeting(), trouble !== "");
    return true;
  }

  private superpixelsOf(task: Task): Promise<Superpixels> {
    const ask = (): Promise<Superpixels> => this.api.superpixels(task.image_id);
    return untilReached(ask, (milliseconds) => this.sleeper.sleep(milliseconds), () => {}, 3);
  }

  private async lookCloser(imageId: Task["image_id"], canSnap: boolean, crop: Box, prompt: ModelPrompt): Promise<Near> {
    const [near, superpixels] = await Promise.all([
      this.api.zoomIn(imageId, crop, prompt),
      canSnap ? this.superpixelsNear(imageId, crop) : null,
    ]);
    return { ...near, superpixels };
  }

  /** The last crop's are kept: most often the next click is for the same object. */
  private superpixelsNear(imageId: Task["image_id"], crop: Box): Promise<Superpixels> {
    const key = JSON.stringify([imageId, crop]);
    if (this.near?.key !== key) {
      const superpixels = this.api.superpixels(imageId, crop);
      const near = (this.near = { key, superpixels });
      superpixels.catch(() => {
        if (this.near === near) this.near = null; // the next click asks again
      });
    }
    return this.near.superpixels;
  }

  /** Another image on the desk, or none; the one before is let go of. */
  private show(next: OpenTask | null): void {
    const before = this.current;
    this.current = next;
    this.voice.changed(); // whoever paints has the next one now
    before?.image?.close();
  }

  /** Fetches a task ahead, or gives back what somebody else could do. */
  private tendSupply(): void {
    if (this.phase !== "working") return;
    if (this.idleSeconds <= AWAY_SECONDS) this.supply.tend(this.progress, this.idleSeconds);
    else if (this.unsaved > 0 || this.current?.isUnfinished) this.supply.pause(); // nothing of it is thrown away
    else this.rest();
  }

  private get idleSeconds(): number {
    return (performance.now() - this.lastInput) / 1000;
  }

  /** Nobody is here: others may do what this page holds. */
  private rest(): void {
    const { current } = this;
    this.phase = "away";
    this.show(null);
    if (current) this.saves.letGo(current.task.task_id);
    void this.supply.giveBackAll(this.handIns.tasks);
    this.voice.say("You were away, and the image went back with its masks. Press any key to go on.");
  }

  /** Someone else has the task, or will: what was saved stays with it. */
  private passedOn(taskId: Task["task_id"]): void {
    const late = this.saves.of(taskId).length;
    this.saves.letGo(taskId);
    this.supply.letGo(taskId);
    if (this.handIns.tasks.has(taskId)) return; // handing it in will tell
    if (this.current?.task.task_id !== taskId || this.phase === "claiming" || this.phase === "waiting") return;
    this.current.drawing.drop();
    this.phase = "claiming";
    const lost = late > 0 ? ` ${changes(late)} came too late to be saved.` : "";
    this.voice.say(`This image has passed on to someone else. What was saved is kept with it.${lost} Fetching another…`, true);
    void this.sleeper.sleep(1500).then(() => this.openNext());
  }

  private refused({ taskId, change }: Waiting, error: Refused): void {
    if (change.kind === "save" && this.current?.task.task_id === taskId) this.current.finished.refuse(change.id, error.message);
    this.voice.say(`The server refused the change: ${error.message}`, true);
  }

  private untilReached<Result>(request: () => Promise<Result>): Promise<Result> {
    return untilReached(
      request,
      (milliseconds) => this.sleeper.sleep(milliseconds),
      (trouble) => this.voice.say(trouble, true),
    );
  }

  private async followProgress(): Promise<void> {
    while (!this.stopped) {
      await this.refreshProgress();
      this.tendSupply();
      await this.sleeper.sleep(PROGRESS_MILLISECONDS);
    }
  }

  private async refreshProgress(): Promise<void> {
    try {
      this.progress = await this.api.progress(this.kind);
      this.voice.changed();
    } catch {
      // It is shown when it is known; nothing depends on it.
    }
  }
}

function changes(number: number): string {
  return `${number} change${number === 1 ? "" : "s"}`;
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
