import { expect, test, vi } from "vitest";
import { Refused, Unreached } from "../src/api";
import { Sleeper, untilReached } from "../src/retry";

test("a request is repeated, ever more slowly, until it is answered", async () => {
  const failures = [...Array(6).fill(new Unreached("down")), new Refused(401, "who are you")];
  const slept: number[] = [];
  const answer = await untilReached(
    async () => {
      const failure = failures.shift();
      if (failure) throw failure;
      return "answer";
    },
    async (milliseconds) => void slept.push(milliseconds),
    () => {},
  );
  expect(answer).toBe("answer");
  expect(slept).toEqual([500, 1000, 2000, 4000, 5000, 5000, 60_000]);
});

test("an error that waiting cannot mend is thrown at once", async () => {
  const sleep = vi.fn(async () => {});
  const request = untilReached(() => Promise.reject(new Refused(409, "passed on")), sleep, () => {});
  await expect(request).rejects.toThrow("passed on");
  expect(sleep).not.toHaveBeenCalled();
});

test("what one can do without is asked for so often, and no more", async () => {
  const ask = vi.fn(async () => Promise.reject(new Unreached("down")));
  const sleep = vi.fn(async () => {});
  await expect(untilReached(ask, sleep, () => {}, 3)).rejects.toThrow("down");
  expect([ask.mock.calls.length, sleep.mock.calls.length]).toEqual([3, 2]);
  const errors = [new Refused(401, "sign in"), new Unreached("down"), new Refused(401, "sign in")];
  const later = async () => (errors.length ? Promise.reject(errors.shift()) : "answer");
  expect(await untilReached(later, sleep, () => {}, 2)).toBe("answer"); // being signed out does not count
});

test("whoever sleeps can be woken", async () => {
  const sleeper = new Sleeper();
  const sleeping = [sleeper.sleep(60_000), sleeper.sleep(60_000)];
  sleeper.wake();
  await Promise.all(sleeping);
});
