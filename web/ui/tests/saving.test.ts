import { expect, test } from "vitest";
import { type MaskPayload, Refused, Unreached } from "../src/api";
import { type Change, type LeasedTask, SaveQueue, type SavingHooks } from "../src/saving";

const MASK = { seconds: 1 } as MaskPayload;
const task = (task_id: string, lease: string, hands = 1, known: readonly string[] = []): LeasedTask => ({
  task_id, lease, file_name: `${task_id}.jpg`, hands, masks: known.map((mask_id) => ({ mask_id, mask: MASK, base: null })),
});
const save = (id: string, mask = MASK): Change => ({ kind: "save", id, mask });

class Storage {
  items = new Map<string, string>();
  getItem = (key: string): string | null => this.items.get(key) ?? null;
  setItem = (key: string, text: string): void => void this.items.set(key, text);
  removeItem = (key: string): void => void this.items.delete(key);
}

/** A server that answers each request as the test says. */
function desk(storage: Storage | null = null) {
  const sent: string[] = [];
  const events: string[] = [];
  const answers: (Error | null)[] = [];
  const sleeps: number[] = [];
  const hooks: SavingHooks = {
    async send(taskId, lease, change) {
      sent.push(`${taskId} ${lease} ${change.kind} ${change.id}`);
      const answer = answers.shift();
      if (answer) throw answer;
    },
    changed: () => {},
    refused: ({ change }, error) => void events.push(`refused ${change.id} ${error.message}`),
    passedOn: (taskId) => void events.push(`passed on ${taskId}`),
    sleep: async (milliseconds) => void sleeps.push(milliseconds),
    now: () => 1e12,
  };
  return { sent, events, answers, sleeps, queue: new SaveQueue(hooks, storage, "unsaved") };
}

const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

test("changes are sent at once, in order", async () => {
  const { queue, sent } = desk();
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  queue.add("t", { kind: "flag", id: "a", flagged: true });
  queue.add("t", { kind: "delete", id: "b" });
  expect(queue.count).toBe(3);
  await settled();
  expect(sent).toEqual(["t l save a", "t l flag a", "t l delete b"]);
  expect(queue.count).toBe(0);
});

test("while the server is away a change is tried again, ever less often, and counts as unsaved", async () => {
  const { queue, sent, answers, sleeps } = desk();
  answers.push(...Array.from({ length: 7 }, () => new Unreached("away")));
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  await settled();
  expect(sent.length).toBe(8);
  expect(sleeps).toEqual([500, 1000, 2000, 4000, 5000, 5000, 5000]);
  expect(queue.count).toBe(0);
});

test("a newer change takes the older one's place, also while that is on its way", async () => {
  const { queue, sent } = desk();
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  queue.add("t", { kind: "delete", id: "a" });
  await settled();
  expect(sent).toEqual(["t l save a", "t l delete a"]);
});

test("a stale lease keeps the changes until the same task is held again", async () => {
  const { queue, sent, events, answers } = desk();
  answers.push(new Refused(409, "stale"));
  queue.hold(task("t", "old"));
  queue.add("t", save("a"));
  await settled();
  expect(events).toEqual(["passed on t"]);
  queue.hold(task("other", "l"));
  queue.add("other", save("b"));
  await settled();
  expect(queue.of("t").length).toBe(1);
  queue.hold(task("t", "new"));
  await settled();
  expect(sent).toEqual(["t old save a", "other l save b", "t new save a"]);
});

test("what can no longer be sent keeps nobody from leaving", async () => {
  const { queue, answers } = desk();
  answers.push(new Refused(409, "stale"));
  queue.hold(task("t", "old"));
  queue.add("t", save("a"));
  queue.add("t", save("b"));
  expect(queue.count).toBe(2);
  await settled();
  expect([queue.count, queue.of("t").length]).toEqual([0, 2]);
  queue.hold(task("other", "l"));
  queue.add("other", save("c"));
  expect(queue.count).toBe(1);
  await settled();
  queue.hold(task("t", "new"));
  expect(queue.count).toBe(2); // it can be sent again
  queue.letGo("t"); // its lease was not renewed
  expect(queue.count).toBe(0);
});

test("signed out, changes wait for the next sign-in", async () => {
  const { queue, sent, answers } = desk();
  answers.push(new Refused(401, "who?"));
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  queue.add("t", save("b"));
  await settled();
  expect(sent.length).toBe(1);
  queue.resume();
  await settled();
  expect(queue.count).toBe(0);
});

test("a mask that the server will not take is said, not tried again and kept until it is corrected or deleted", async () => {
  const storage = new Storage();
  const { queue, sent, events, answers } = desk(storage);
  answers.push(new Refused(422, "too small"));
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  queue.add("t", save("b"));
  await settled();
  expect(events).toEqual(["refused a too small"]);
  expect(sent).toEqual(["t l save a", "t l save b"]);
  expect(queue.count).toBe(1);
  const later = desk(storage).queue;
  later.hold(task("t", "new"));
  expect(later.of("t")).toMatchObject([{ change: save("a"), refused: "too small" }]);
  answers.push(new Refused(422, "still too small"));
  queue.add("t", save("a"));
  queue.add("t", { kind: "delete", id: "a" });
  await settled();
  expect([queue.count, storage.items.size]).toEqual([0, 0]);
  expect(events.length).toBe(1); // of a mask that is gone nothing is said
});

test("what others than the server refuse is tried again", async () => {
  const { queue, sent, events, answers } = desk();
  answers.push(new Refused(403, "says a proxy"), new Refused(429, "too many requests"));
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  await settled();
  expect([sent.length, queue.count, events.length]).toEqual([3, 0, 0]);
});

test("a page that was closed sends its changes when the task comes back", async () => {
  const storage = new Storage();
  const before = desk(storage);
  before.answers.push(new Refused(401, "who?"));
  before.queue.hold(task("t", "l"));
  before.queue.add("t", save("a"));
  await settled();
  const { queue, sent } = desk(storage);
  queue.hold(task("other", "l"));
  queue.add("other", save("b"));
  await settled();
  queue.hold(task("t", "new"));
  expect(queue.of("t").map(({ change }) => change)).toEqual([save("a")]);
  await settled();
  expect(sent).toEqual(["other l save b", "t new save a"]);
  expect(storage.items.size).toBe(0);
});

test("what somebody else has made of a task meanwhile stands; new masks are sent all the same", async () => {
  const storage = new Storage();
  const before = desk(storage);
  before.answers.push(new Refused(401, "who?"));
  before.queue.hold(task("t", "l", 1, ["theirs", "gone"]));
  before.queue.add("t", save("theirs"));
  before.queue.add("t", { kind: "delete", id: "gone" });
  before.queue.add("t", { kind: "flag", id: "7", flagged: true });
  before.queue.add("t", save("mine"));
  await settled();
  const { queue, sent } = desk(storage);
  expect(queue.hold(task("t", "new", 3, ["theirs", "gone"]))).toBe(3);
  await settled();
  expect(sent).toEqual(["t new save mine"]);
  expect(storage.items.size).toBe(0);
});

test("what another page has sent of a task that this one lost is not sent again", async () => {
  const storage = new Storage();
  const { queue, sent, answers } = desk(storage);
  answers.push(new Refused(401, "who?"));
  queue.hold(task("t", "l"));
  queue.add("t", save("a"));
  await settled();
  queue.letGo("t"); // its lease was not renewed
  const other = desk(storage);
  other.queue.hold(task("t", "theirs"));
  await settled();
  expect(other.sent).toEqual(["t theirs save a"]);
  queue.resume();
  expect(queue.hold(task("t", "new"))).toBe(0);
  await settled();
  expect(sent).toEqual(["t l save a"]);
});

test("what the browser has no room for is told of until the server has it", async () => {
  const storage = new Storage();
  storage.setItem = () => {
    throw new DOMException("no room", "QuotaExceededError");
  };
  const { queue, answers } = desk(storage);
  answers.push(new Refused(401, "signed out"));
  queue.hold(task("t", "l"));
  expect(queue.isFragile).toBe(false);
  queue.add("t", save("a"));
  await settled();
  expect(queue.isFragile).toBe(true);
  queue.resume();
  await settled();
  expect([queue.count, queue.isFragile]).toEqual([0, false]);
});
