import { expect, test } from "vitest";
import { ActiveClock } from "../src/active_clock";

test("time between inputs counts, a pause above 30 s does not", () => {
  let now = 100;
  const clock = new ActiveClock(() => now);
  now = 110;
  clock.input();
  now = 140;
  clock.input();
  expect(clock.seconds()).toBe(40);
  now = 171; // 31 s without input
  clock.input();
  expect(clock.seconds()).toBe(40);
  now = 175;
  expect(clock.seconds()).toBe(44);
  now = 300;
  expect(clock.seconds()).toBe(40);
});
