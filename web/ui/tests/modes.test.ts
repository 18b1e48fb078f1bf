import { expect, test } from "vitest";
import { modeAt, modesOf } from "../src/modes";

test("each role has its modes", () => {
  const kinds = ["annotate", "review"] as const;
  expect(modesOf({ role: "annotator", kinds })).toEqual(["annotate"]);
  expect(modesOf({ role: "reviewer", kinds })).toEqual(["annotate", "review"]);
  expect(modesOf({ role: "manager", kinds })).toEqual(["annotate", "review", "dashboard"]);
  expect(modesOf({ role: "manager", kinds: ["audit"] })).toEqual(["audit", "dashboard"]);
});

test("an address leads to what may be done, and any other one to the first", () => {
  const modes = ["annotate", "review"] as const;
  expect(modeAt("#review", modes)).toBe("review");
  for (const hash of ["", "#", "#dashboard", "#review/", "review"]) expect(modeAt(hash, modes)).toBe("annotate");
});
