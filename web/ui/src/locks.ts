/**
 * Which tasks the living tabs of this browser hold: one Web Lock each, which ends with its tab.
 *
 * Every claim names them, so that the server hands out at once what a tab that died has left, and
 * takes nothing from one that lives. Claims of several tabs come one after the other.
 */

import type { Task } from "./api";

export class TaskLocks {
  private readonly letGos = new Map<Task["task_id"], () => void>();

  /** `locks`: undefined where pages are served over plain HTTP from another machine. */
  constructor(
    private readonly runId: string,
    private readonly locks: LockManager | undefined,
  ) {}

  /** `ask` is told what living tabs hold; null: this browser cannot tell. */
  async claim(ask: (holding: number[] | null) => Promise<Task | null>): Promise<Task | null> {
    const { locks } = this;
    if (!locks) return ask(null);
    return locks.request(`sa-engine:claim:${this.runId}`, async () => {
      const { held = [] } = await locks.query();
      const prefix = this.nameOf("");
      const names = held.map(({ name = "" }) => name).filter((name) => name.startsWith(prefix));
      const task = await ask(names.map((name) => Number(name.slice(prefix.length))));
      if (task) await this.hold(locks, task.task_id);
      return task;
    });
  }

  letGo(taskId: Task["task_id"]): void {
    this.letGos.get(taskId)?.();
    this.letGos.delete(taskId);
  }

  /** Until it is let go; a tab whose lease has passed on to this one may still hold the lock. */
  private hold(locks: LockManager, taskId: Task["task_id"]): Promise<void> {
    return new Promise((holding) => {
      void locks.request(this.nameOf(taskId), { ifAvailable: true }, (lock) => {
        holding();
        return lock ? new Promise<void>((letGo) => this.letGos.set(taskId, letGo)) : undefined;
      });
    });
  }

  private nameOf(taskId: Task["task_id"]): string {
    return `sa-engine:task:${this.runId}:${taskId}`;
  }
}
