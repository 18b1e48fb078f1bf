import { describe, expect, test } from "vitest";
import { EMPTY, type Mask } from "../src/mask";
import { compress, decodeRle, decompress, encodeRle, type Size } from "../src/rle";
import { maskOf, randomMask, seeded, whole } from "./random";

function drawn(size: Size, inside: (x: number, y: number) => boolean): Mask {
  const bits = new Uint8Array(size.width * size.height);
  for (let y = 0; y < size.height; y++) {
    for (let x = 0; x < size.width; x++) bits[y * size.width + x] = inside(x, y) ? 1 : 0;
  }
  return { x: 0, y: 0, ...size, bits };
}

const SMALL = { width: 6, height: 4 };
const RING = { width: 160, height: 120 };
const square = (x: number, y: number): number => (y - 60) ** 2 + (x - 80) ** 2;

// Counts as pycocotools writes them.
const KNOWN: [string, Size, Mask, string][] = [
  ["empty", SMALL, EMPTY, "h0"],
  ["full", SMALL, drawn(SMALL, () => true), "0h0"],
  ["one pixel", SMALL, maskOf(["#"], { x: 3, y: 2 }), ">19"],
  ["the first pixel", SMALL, maskOf(["#"]), "01g0"],
  ["the last pixel", SMALL, maskOf(["#"], { x: 5, y: 3 }), "g01"],
  ["a checkerboard", { width: 5, height: 5 }, drawn({ width: 5, height: 5 }, (x, y) => (x + y) % 2 === 1), "1110000000000000000000000"],
  ["whole columns", { width: 400, height: 300 }, drawn({ width: 400, height: 300 }, (x) => x >= 100 && x < 200), "`Ym0`Ym0Pcj1"],
  ["a ring", RING, drawn(RING, (x, y) => square(x, y) < 45 ** 2 && square(x, y) >= 20 ** 2),
    "cX4c0Q38I6K4L4L4L4M2N2M4M2N2N2N2N2N2N2O0O2N2N2O0O2O0O2OaNVO0i0O[O0d0N@0?0C0<NH08OJ050M020N02O000O20M130LO60J060JO80H080H080H080H080H080H080H080H080H080H080H080H080H160J060J140MO30N10001N020N030K061H082D0=0A0`02\\O0e01WO0j0_11N101N101N2N2N101N2N2N2N2N2N2N3L3N2N3L4L4L4L5J7HiQ4"],
];

describe("RLE", () => {
  test.each(KNOWN)("of %s is what pycocotools writes", (_name, size, mask, counts) => {
    const rle = encodeRle(mask, size);
    expect(rle).toEqual({ size: [size.height, size.width], counts });
    expect(whole(decodeRle(rle), size)).toEqual(whole(mask, size));
  });

  test("decoding what was encoded gives the same mask, wherever its window lies", () => {
    const random = seeded(7);
    for (let trial = 0; trial < 400; trial++) {
      const size = { width: 1 + Math.floor(random() * 30), height: 1 + Math.floor(random() * 30) };
      const mask = randomMask(random, size);
      const rle = encodeRle(mask, size);
      expect(whole(decodeRle(rle), size)).toEqual(whole(mask, size));
      // The window does not show in the runs.
      const loose = { x: 0, y: 0, ...size, bits: Uint8Array.from(whole(mask, size)) };
      expect(encodeRle(loose, size)).toEqual(rle);
    }
  });

  test("numbers of every length survive", () => {
    const runs = [0, 1, 31, 32, 1023, 1024, 5, 3_375_000, 2, 200_000_000, 1];
    expect(decompress(compress(runs))).toEqual(runs);
  });

  test("a text that is no RLE of this size is refused", () => {
    expect(() => decodeRle({ size: [4, 6], counts: "h1" })).toThrow("expected 4 x 6");
    expect(() => decodeRle({ size: [4, 6], counts: "~" })).toThrow("no RLE");
    expect(() => decodeRle({ size: [4, 6], counts: "P" })).toThrow("no RLE");
  });
});
