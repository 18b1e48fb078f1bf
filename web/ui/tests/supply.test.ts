import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Refused, type Task, Unreached } from "../src/api";
import { TaskLocks } from "../src/locks";
import { TaskSupply } from "../src/supply";

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

function desk(count: number) {
  const open = Array.from({ length: count }, (_, at) => at + 1);
  const log: string[] = [];
  const failures: Error[] = [];
  const closed: Task["task_id"][] = [];
  const server = {
    claim: async (): Promise<Task | null> => {
      const id = open.shift();
      log.push(`claim ${id ?? "-"}`);
      return id ? ({ task_id: id, expires_in: 120 } as Task) : null;
    },
    renew: async ({ task_id }: Task): Promise<number> => {
      log.push(`renew ${task_id}`);
      const failure = failures.shift();
      if (failure) throw failure;
      return 120;
    },
    release: async ({ task_id }: Task): Promise<void> => {
      log.push(`release ${task_id}`);
      open.unshift(Number(task_id));
    },
  };
  const hooks = {
    image: async ({ task_id }: Task) => ({ close: () => void closed.push(task_id) }) as ImageBitmap,
    superpixels: async () => null,
    prepare: ({ task_id }: Task): void => void log.push(`prepare ${task_id}`),
    lost: (taskId: Task["task_id"]): void => void log.push(`lost ${taskId}`),
  };
  return { supply: new TaskSupply(server, "annotate", new TaskLocks("run", undefined), hooks), log, failures, closed };
}

test("the next task is the one fetched ahead, and one alone is fetched", async () => {
  const { supply, log } = desk(3);
  expect((await supply.next())?.task.task_id).toBe(1);
  supply.tend(null, 0);
  supply.tend(null, 0);
  expect((await supply.next())?.task.task_id).toBe(2);
  expect((await supply.next())?.task.task_id).toBe(3);
  expect(log).toEqual(["claim 1", "prepare 1", "claim 2", "prepare 2", "claim 3", "prepare 3"]);
});

test("when nothing was there to fetch ahead, it is looked for anew", async () => {
  const { supply, log } = desk(0);
  supply.tend(null, 0);
  expect(await supply.next()).toBeNull();
  supply.tend(null, 0);
  await vi.advanceTimersByTimeAsync(0);
  expect(log).toEqual(["claim -", "claim -", "claim -"]);
});

test("what is given back can be claimed by others and is not renewed", async () => {
  const { supply, log } = desk(2);
  await supply.next();
  supply.tend(null, 0);
  supply.tend({ open: 9 }, 0);
  supply.tend({ open: 0 }, 0);
  await vi.advanceTimersByTimeAsync(50_000);
  expect(log.slice(4)).toEqual(["release 2", "renew 1"]);
  await supply.next();
  await supply.giveBackAll(new Set([1]));
  expect(log.slice(6)).toEqual(["claim 2", "prepare 2", "release 2"]);
});

test("when all is given back, so is what was still being fetched ahead", async () => {
  const { supply, log } = desk(2);
  await supply.next();
  supply.tend(null, 0);
  await supply.giveBackAll(new Set());
  await vi.advanceTimersByTimeAsync(50_000);
  expect(log.filter((line) => !line.startsWith("prepare")).sort()).toEqual(["claim 1", "claim 2", "release 1", "release 2"]);
});

test("every lease is renewed at a third of its time, and soon again when the server is away", async () => {
  const { supply, log, failures } = desk(2);
  await supply.next();
  supply.tend(null, 0);
  await vi.advanceTimersByTimeAsync(0);
  failures.push(new Unreached("away"), new Refused(401, "signed out"));
  log.length = 0;
  await vi.advanceTimersByTimeAsync(46_000);
  expect(log).toEqual(["renew 1", "renew 2", "renew 1", "renew 2"]);
  supply.letGo(1);
  await vi.advanceTimersByTimeAsync(40_000);
  expect(log.slice(4)).toEqual(["renew 2"]);
});

test("what a proxy says ends no lease", async () => {
  const { supply, log, failures } = desk(1);
  await supply.next();
  failures.push(new Refused(403, "says a proxy"));
  await vi.advanceTimersByTimeAsync(46_000);
  expect(log.filter((line) => line === "renew 1").length).toBe(2);
  expect(log).not.toContain("lost 1");
});

test("while nobody is here leases run out, and the next input renews them", async () => {
  const { supply, log } = desk(2);
  await supply.next();
  supply.tend(null, 0);
  await vi.advanceTimersByTimeAsync(0);
  supply.pause();
  await vi.advanceTimersByTimeAsync(600_000);
  expect(log).toContain("release 2");
  expect(log.some((line) => line.startsWith("renew"))).toBe(false);
  supply.renewAll();
  await vi.advanceTimersByTimeAsync(0);
  expect(log.at(-1)).toBe("renew 1");
});

test("a task fetched ahead whose lease has ended is not opened", async () => {
  const { supply, log, failures } = desk(3);
  await supply.next();
  supply.letGo(1);
  supply.tend(null, 0);
  failures.push(new Refused(409, "expired"));
  await vi.advanceTimersByTimeAsync(41_000);
  expect(log).toContain("lost 2");
  expect((await supply.next())?.task.task_id).toBe(3);
});

test("the image of a task that was never opened is closed with it, and no other", async () => {
  const { supply, closed, failures } = desk(3);
  await supply.next();
  supply.tend(null, 0);
  await vi.advanceTimersByTimeAsync(0);
  supply.letGo(1);
  await supply.giveBackAll(new Set());
  await vi.advanceTimersByTimeAsync(0);
  expect(closed).toEqual([2]);
  await supply.next(); // 2 again
  supply.tend(null, 0);
  failures.push(new Refused(409, "expired"), new Refused(409, "expired"));
  await vi.advanceTimersByTimeAsync(41_000);
  expect(closed).toEqual([2, 3]);
});

test("nobody hides a task from others when away", async () => {
  const { supply, log } = desk(2);
  await supply.next();
  supply.tend(null, 300);
  supply.tend(null, 10);
  await vi.advanceTimersByTimeAsync(0);
  supply.tend(null, 300);
  supply.tend(null, 300);
  await vi.advanceTimersByTimeAsync(0);
  expect(log).toEqual(["claim 1", "prepare 1", "claim 2", "prepare 2", "release 2"]);
});
