import { expect, test } from "vitest";
import { currentRound, type RoundFigures, roundName } from "../src/dashboard_figures";

function rounds(...states: RoundFigures["state"][]): RoundFigures[] {
  return states.map((state, index) => ({ index, state }) as RoundFigures);
}

test("the round that is shown first is where people work, or the last that began", () => {
  expect(currentRound(rounds("done", "working", "waiting"))).toBe(1);
  expect(currentRound(rounds("done", "sealed", "waiting"))).toBe(1);
  expect(currentRound(rounds("done", "done"))).toBe(1);
  expect(currentRound(rounds("waiting", "waiting"))).toBe(0);
});

test("a round is named as in the folder of the run", () => {
  expect(roundName({ index: 2, stage: "fully_automatic" })).toBe("2 fully automatic");
});
