import { expect, test } from "vitest";
import { base64ToBytes, bytesToBase64, floatToHalf, halvesToFloats } from "../src/half";
import { seeded } from "./random";

// As numpy rounds them.
const KNOWN: [number, number][] = [
  [0.1, 11878], [-3.14159, 49736], [65504, 31743], [65519, 31743], [65520, 31744], [1e-8, 0],
  [6e-8, 1], [3e-5, 503], [1.0009765625, 15361], [1.00048828125, 15360], [1.00146484375, 15362],
  [-0, 32768], [1e6, 31744],
];

test.each(KNOWN)("%d becomes the half %d", (value, half) => {
  expect(floatToHalf(value)).toBe(half);
});

test("every finite half survives", () => {
  const halves = Uint16Array.from({ length: 1 << 16 }, (_, half) => half);
  const floats = halvesToFloats(halves);
  for (const half of halves) {
    if (Number.isNaN(floats[half])) continue;
    if (floatToHalf(floats[half]) !== half) throw new Error(`half ${half} became ${floatToHalf(floats[half])}`);
  }
});

test("bytes survive base64", () => {
  const random = seeded(3);
  const bytes = Uint8Array.from({ length: 100_003 }, () => Math.floor(random() * 256));
  expect(base64ToBytes(bytesToBase64(bytes)).every((byte, at) => byte === bytes[at])).toBe(true);
});
