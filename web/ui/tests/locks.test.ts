import { expect, test } from "vitest";
import type { Task } from "../src/api";
import { TaskLocks } from "../src/locks";

/** The Web Locks of one browser, as much of them as is used. */
class Locks {
  private readonly held = new Map<string, Promise<unknown>>();

  async query(): Promise<LockManagerSnapshot> {
    return { held: [...this.held.keys()].map((name) => ({ name })) };
  }

  async request(name: string, ...rest: unknown[]): Promise<unknown> {
    const callback = rest[rest.length - 1] as (lock: object | null) => unknown;
    const isAvailable = (rest[0] as { ifAvailable?: boolean }).ifAvailable;
    while (this.held.has(name)) {
      if (isAvailable) return callback(null);
      await this.held.get(name);
    }
    const done = (async () => callback({}))();
    this.held.set(name, done);
    return done.finally(() => this.held.delete(name));
  }
}

const asManager = (locks: Locks): LockManager => locks as unknown as LockManager;
const task = (id: number): Task => ({ task_id: id }) as Task;

test("a claim names what all living tabs of the browser hold", async () => {
  const locks = new Locks();
  const [one, two] = [new TaskLocks("run", asManager(locks)), new TaskLocks("run", asManager(locks))];
  const other = new TaskLocks("another run", asManager(locks));
  const asked: (number[] | null)[] = [];
  const claim = (tab: TaskLocks, id: number): Promise<Task | null> =>
    tab.claim(async (holding) => {
      asked.push(holding);
      return task(id);
    });
  await claim(one, 1);
  await claim(two, 2);
  await claim(other, 9);
  one.letGo(1);
  await new Promise((resolve) => setTimeout(resolve)); // the browser takes its time
  await claim(one, 3);
  expect(asked).toEqual([[], [1], [], [2]]);
});

test("two tabs claim one after the other", async () => {
  const locks = new Locks();
  const tabs = [new TaskLocks("run", asManager(locks)), new TaskLocks("run", asManager(locks))];
  const asked = new Map<number, number[] | null>();
  await Promise.all(
    tabs.map((tab, index) =>
      tab.claim(async (holding) => {
        asked.set(index, holding);
        await new Promise((resolve) => setTimeout(resolve, 1));
        return task(index);
      }),
    ),
  );
  expect([...asked]).toEqual([[0, []], [1, [0]]]);
});

test("a claim ends although another tab still has the task's lock", async () => {
  const locks = new Locks();
  const [one, two] = [new TaskLocks("run", asManager(locks)), new TaskLocks("run", asManager(locks))];
  for (const tab of [one, two]) expect(await tab.claim(async () => task(1))).toEqual(task(1));
});

test("a browser without locks cannot tell", async () => {
  const asked = await new TaskLocks("run", undefined).claim(async (holding) => {
    expect(holding).toBeNull();
    return null;
  });
  expect(asked).toBeNull();
});
