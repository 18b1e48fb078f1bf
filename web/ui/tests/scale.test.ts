import { expect, test } from "vitest";
import { binCentres, percent, readable, ticks } from "../src/scale";

test.each([
  [34, [0, 10, 20, 30, 40]],
  [40, [0, 10, 20, 30, 40]],
  [0.7, [0, 0.2, 0.4, 0.6, 0.8]],
  [1, [0, 0.5, 1]],
  [1234, [0, 500, 1000, 1500]],
])("ticks up to %d are round and span it", (highest, expected) => {
  expect(ticks(highest)).toEqual(expected);
});

test.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY])("without a highest value (%d) there is still a scale", (highest) => {
  expect(ticks(highest)).toEqual([0, 1]);
});

test("bins are as wide as what they hold", () => {
  expect(binCentres([2, 2])).toEqual([0.25, 0.75]);
  expect(binCentres([3, 1])).toEqual([0.375, 0.875]);
  expect(binCentres([])).toEqual([]);
  expect(binCentres([0])).toEqual([0]);
});

test("numbers have as many digits as matter", () => {
  expect([0, 3.14159, 31.4159, 314.159, 31415.9].map(readable)).toEqual(["0", "3.14", "31.4", "314", "31,416"]);
  expect([0, 0.5, 0.94, 0.999, 1].map(percent)).toEqual(["0 %", "50.0 %", "94.0 %", "100 %", "100 %"]);
});
