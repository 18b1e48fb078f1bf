/**
 * The tasks that this page holds: the one in work, and the next one, fetched ahead.
 *
 * Each lease is renewed until its task is let go. A task fetched ahead is one that nobody else can
 * work on, so there is none for somebody who is away; the server gives none when few are left.
 */

import { type Api, type Progress, Refused, type Task, type TaskKind } from "./api";
import type { TaskLocks } from "./locks";
import type { Superpixels } from "./snapped_upscale";

export interface HeldTask {
  readonly task: Task;
  readonly image: Promise<ImageBitmap>;
  /** Null where masks are not made of them. */
  readonly superpixels: Promise<Superpixels | null>;
}

export interface SupplyHooks {
  image(task: Task): Promise<ImageBitmap>;
  superpixels(task: Task): Promise<Superpixels | null>;
  /** The decoder may fetch what it needs. */
  prepare(task: Task): void;
  /** The lease is no longer good. */
  lost(taskId: Task["task_id"]): void;
}

type TaskId = Task["task_id"];

const IDLE_SECONDS = 120;
const RETRY_MILLISECONDS = 5000;

export class TaskSupply {
  private readonly held = new Map<TaskId, HeldTask>();
  /** Whoever has opened a task closes its image. */
  private readonly opened = new Set<TaskId>();
  private readonly renewing = new Map<TaskId, ReturnType<typeof setTimeout>>();
  private ahead: Promise<HeldTask | null> | null = null;

  constructor(
    private readonly server: Pick<Api, "claim" | "renew" | "release">,
    private readonly kind: TaskKind,
    private readonly locks: TaskLocks,
    private readonly hooks: SupplyHooks,
  ) {}

  /** What was fetched ahead, or else what is claimed now; null when nothing is left now. */
  async next(): Promise<HeldTask | null> {
    const next = (await this.takeAhead()) ?? (await this.claim(false));
    if (next) this.opened.add(next.task.task_id);
    return next;
  }

  /** Sees that a task is fetched ahead, or given back when somebody else could do it. */
  tend(progress: Pick<Progress, "open"> | null, idleSeconds: number): void {
    if (idleSeconds > IDLE_SECONDS) void this.giveBackAhead();
    else if (!this.ahead) this.fetchAhead();
    else if (progress?.open === 0) void this.giveBackAhead();
  }

  private fetchAhead(): void {
    const fetching = this.claim(true).catch(() => null);
    this.ahead = fetching;
    void fetching.then((found) => {
      if (!found && this.ahead === fetching) this.ahead = null; // a later look may find one
    });
  }

  private async giveBackAhead(): Promise<void> {
    const ahead = await this.takeAhead();
    if (ahead) await this.giveBack(ahead.task.task_id);
  }

  /** Back to the queue, unanswered. */
  async giveBack(taskId: TaskId): Promise<void> {
    const held = this.held.get(taskId);
    this.letGo(taskId);
    if (held) await this.server.release(held.task).catch(() => {});
  }

  /** All but these, what is being fetched ahead, too. */
  async giveBackAll(except: ReadonlySet<TaskId>): Promise<void> {
    const others = [...this.held.keys()].filter((taskId) => !except.has(taskId));
    await Promise.all([...others.map((taskId) => this.giveBack(taskId)), this.giveBackAhead()]);
  }

  /** Nobody is here: whoever wants a task has it once its lease has run out; until then it stays this page's. */
  pause(): void {
    for (const timer of this.renewing.values()) clearTimeout(timer);
    void this.giveBackAhead();
  }

  /** It is handed in, or somebody else has it. */
  letGo(taskId: TaskId): void {
    clearTimeout(this.renewing.get(taskId));
    this.renewing.delete(taskId);
    const isOpened = this.opened.delete(taskId);
    if (!isOpened) this.held.get(taskId)?.image.then((image) => image.close(), () => {});
    this.held.delete(taskId);
    this.locks.letGo(taskId);
  }

  /** Every lease, now: they may have ended while the network was away. */
  renewAll(): void {
    for (const { task } of this.held.values()) this.renewIn(0, task);
  }

  private async claim(ahead: boolean): Promise<HeldTask | null> {
    const task = await this.locks.claim((holding) => this.server.claim(this.kind, holding, ahead));
    if (!task) return null;
    const image = this.hooks.image(task);
    const superpixels = this.hooks.superpixels(task);
    for (const fetching of [image, superpixels]) fetching.catch(() => {}); // whoever opens the task is told
    const held = { task, image, superpixels };
    this.held.set(task.task_id, held);
    this.hooks.prepare(task);
    this.renewIn((task.expires_in * 1000) / 3, task);
    return held;
  }

  private async takeAhead(): Promise<HeldTask | null> {
    const fetching = this.ahead;
    this.ahead = null;
    const ahead = await fetching;
    return ahead && this.held.has(ahead.task.task_id) ? ahead : null;
  }

  private renewIn(milliseconds: number, task: Task): void {
    clearTimeout(this.renewing.get(task.task_id));
    this.renewing.set(task.task_id, setTimeout(() => void this.renew(task), milliseconds));
  }

  private async renew(task: Task): Promise<void> {
    try {
      const seconds = await this.server.renew(task);
      if (this.held.has(task.task_id)) this.renewIn((seconds * 1000) / 3, task);
    } catch (error) {
      if (!this.held.has(task.task_id)) return;
      if (error instanceof Refused && error.status === 409) {
        this.letGo(task.task_id);
        this.hooks.lost(task.task_id);
      } else {
        this.renewIn(Math.min(RETRY_MILLISECONDS, (task.expires_in * 1000) / 3), task);
      }
    }
  }
}
