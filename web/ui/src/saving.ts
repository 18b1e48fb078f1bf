/**
 * What was accepted is sent at once, and again until the server has it.
 *
 * Changes wait in the order they were made; a newer one to the same mask takes the older one's
 * place. They are also kept in the browser's storage, one entry for each task, so a page that is
 * closed while the server is away sends them when the task is taken up again. A change needs the
 * lease of its task: when the task has passed on, its changes stay until the same task comes back. If
 * somebody else has had it meanwhile, what they made of its masks stands, and only new masks are sent.
 */

import { type Api, type MaskPayload, Refused, type Task, Unreached } from "./api";

export type Change =
  | { kind: "save"; id: string; mask: MaskPayload }
  | { kind: "delete"; id: string }
  | { kind: "flag"; id: string; flagged: boolean };

export interface Waiting {
  taskId: Task["task_id"];
  /** Of the task when the change was made. */
  hands: number;
  change: Change;
  /** Milliseconds since 1970. */
  made: number;
  /** Why the server will not take it, as it is; it is kept all the same. */
  refused?: string;
}

export type LeasedTask = Pick<Task, "task_id" | "lease" | "file_name" | "hands" | "masks">;

export interface SavingHooks {
  send(taskId: Task["task_id"], lease: string, change: Change): Promise<void>;
  /** Something was queued, saved or given up. */
  changed(): void;
  /** The server will not take this change; a mask waits until it is corrected or deleted. */
  refused(waiting: Waiting, error: Refused): void;
  /** The lease is no longer good. */
  passedOn(taskId: Task["task_id"]): void;
  sleep(milliseconds: number): Promise<void>;
  now(): number;
}

const FIRST_DELAY = 500;
const LONGEST_DELAY = 5000;
/** What is said of the change itself, and not of who asks or when. */
const REFUSALS: readonly number[] = [400, 404, 413, 422];
const KEPT_MILLISECONDS = 7 * 24 * 3600 * 1000;

export class SaveQueue {
  private waiting: Waiting[] = [];
  private readonly leases = new Map<Task["task_id"], string>();
  private readonly hands = new Map<Task["task_id"], number>();
  private readonly storageKeys = new Map<Task["task_id"], string>();
  /** Tasks whose changes the browser's storage has no room for. */
  private readonly unkept = new Set<Task["task_id"]>();
  private running = false;
  private signedOut = false;

  constructor(
    private readonly hooks: SavingHooks,
    private readonly storage: Pick<Storage, "getItem" | "setItem" | "removeItem"> | null,
    private readonly prefix: string,
  ) {}

  /** Changes of a task that the server does not have yet. */
  of(taskId: Task["task_id"]): Waiting[] {
    return this.waiting.filter((waiting) => waiting.taskId === taskId);
  }

  /** Changes that can still be sent. Of a task that has passed on none can, for all that is kept of it. */
  get count(): number {
    return this.waiting.filter(({ taskId }) => this.holds(taskId)).length;
  }

  /** Whether some of these are lost if the page is closed now. */
  get isFragile(): boolean {
    return this.waiting.some(({ taskId }) => this.unkept.has(taskId) && this.holds(taskId));
  }

  add(taskId: Task["task_id"], change: Change): void {
    this.waiting = this.waiting.filter((old) => !(old.taskId === taskId && sameTarget(old.change, change)));
    this.waiting.push({ taskId, hands: this.hands.get(taskId) ?? 0, change, made: this.hooks.now() });
    this.keep(taskId);
    void this.run();
  }

  /**
   * The task is held under its lease now. What an earlier page could not send is taken up.
   * Returns how many changes are dropped, for somebody else has had the task since they were made.
   */
  hold({ task_id, lease, file_name, hands, masks }: LeasedTask): number {
    this.leases.set(task_id, lease);
    this.hands.set(task_id, hands);
    const key = `${this.prefix}:${task_id}:${file_name}`;
    this.storageKeys.set(task_id, key);
    const known = new Set(masks.map(({ mask_id }) => mask_id));
    const isNew = ({ change }: Waiting): boolean => change.kind === "save" && !known.has(change.id);
    const here = this.of(task_id);
    const mine = here.length ? here : this.kept(key);
    const good = mine
      .filter((waiting) => waiting.hands === hands || isNew(waiting))
      .map((waiting) => ({ ...waiting, hands }));
    this.waiting = [...this.waiting.filter((waiting) => waiting.taskId !== task_id), ...good];
    if (mine.length) this.keep(task_id);
    void this.run();
    return mine.length - good.length;
  }

  holds(taskId: Task["task_id"]): boolean {
    return this.leases.has(taskId);
  }

  /** What is in the browser's storage is no longer this page's alone: another may send it first. */
  letGo(taskId: Task["task_id"]): void {
    this.leases.delete(taskId);
    const key = this.storageKeys.get(taskId);
    const isKept = key !== undefined && this.kept(key).length === this.of(taskId).length;
    if (isKept) this.waiting = this.waiting.filter((waiting) => waiting.taskId !== taskId);
  }

  /** Somebody has signed in again. */
  resume(): void {
    this.signedOut = false;
    void this.run();
  }

  private async run(): Promise<void> {
    if (this.running) return;
    this.running = true;
    let delay = FIRST_DELAY;
    for (let next = this.next(); next; next = this.next()) {
      const lease = this.leases.get(next.taskId) as string;
      try {
        await this.hooks.send(next.taskId, lease, next.change);
        this.drop(next);
        delay = FIRST_DELAY;
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          this.signedOut = true;
        } else if (error instanceof Refused && error.status === 409) {
          if (this.leases.get(next.taskId) === lease) {
            this.leases.delete(next.taskId);
            this.hooks.passedOn(next.taskId);
          }
        } else if (error instanceof Refused && REFUSALS.includes(error.status)) {
          this.refuse(next, error);
        } else {
          if (!(error instanceof Unreached || error instanceof Refused)) console.error(error);
          await this.hooks.sleep(delay);
          delay = Math.min(2 * delay, LONGEST_DELAY);
        }
      }
    }
    this.running = false;
  }

  private next(): Waiting | undefined {
    if (this.signedOut) return undefined;
    return this.waiting.find(({ taskId, refused }) => refused === undefined && this.holds(taskId));
  }

  /** Unless a newer change has taken its place meanwhile. */
  private refuse(next: Waiting, error: Refused): void {
    if (!this.waiting.includes(next)) return;
    if (next.change.kind === "save") {
      next.refused = error.message;
      this.keep(next.taskId);
    } else this.drop(next);
    this.hooks.refused(next, error);
  }

  /** Unless a newer change has taken its place meanwhile. */
  private drop(done: Waiting): void {
    if (!this.waiting.includes(done)) return;
    this.waiting = this.waiting.filter((waiting) => waiting !== done);
    this.keep(done.taskId);
  }

  private keep(taskId: Task["task_id"]): void {
    const key = this.storageKeys.get(taskId);
    const mine = this.waiting.filter((waiting) => waiting.taskId === taskId);
    this.unkept.delete(taskId);
    try {
      if (key && mine.length) this.storage?.setItem(key, JSON.stringify(mine));
      else if (key) this.storage?.removeItem(key);
    } catch (error) {
      this.unkept.add(taskId);
      console.warn("the browser's storage is full; changes wait in this page alone", error);
    }
    this.hooks.changed();
  }

  private kept(key: string): Waiting[] {
    const oldest = this.hooks.now() - KEPT_MILLISECONDS;
    try {
      const kept: Waiting[] = JSON.parse(this.storage?.getItem(key) ?? "[]");
      return kept.filter((waiting) => waiting.made > oldest);
    } catch {
      return [];
    }
  }
}

export async function sendChange(api: Api, taskId: Task["task_id"], lease: string, change: Change): Promise<void> {
  if (change.kind === "save") await api.saveMask(taskId, lease, change.id, change.mask);
  else if (change.kind === "delete") await api.deleteMask(taskId, lease, change.id);
  else await api.flag(taskId, lease, change.id, change.flagged);
}

function sameTarget(a: Change, b: Change): boolean {
  return a.id === b.id && (a.kind === "flag") === (b.kind === "flag");
}
