/** Images on their way to the server: whoever has done them is at the next one meanwhile. */

import type { Task } from "./api";
import type { SaveQueue } from "./saving";
import type { TaskSupply } from "./supply";

export class HandIns {
  private readonly underway = new Set<Task["task_id"]>();

  /** `untilReached`: repeats a request until it is answered. */
  constructor(
    private readonly supply: TaskSupply,
    private readonly saves: SaveQueue,
    private readonly untilReached: (request: () => Promise<void>) => Promise<void>,
    private readonly refused: (task: Task, error: unknown) => void,
  ) {}

  get tasks(): ReadonlySet<Task["task_id"]> {
    return this.underway;
  }

  /** Everything made of the task is saved. What the server refuses goes back to the queue. */
  async send(task: Task, call: () => Promise<void>): Promise<void> {
    this.underway.add(task.task_id);
    try {
      await this.untilReached(call);
      this.supply.letGo(task.task_id);
    } catch (error) {
      this.refused(task, error);
      await this.supply.giveBack(task.task_id);
    }
    this.underway.delete(task.task_id);
    this.saves.letGo(task.task_id);
  }
}
