/** Scorers of clicks for tests. */

import { ClickScorer } from "../src/click_scorer";

const NUM_LOOKS = 20;
const NUM_FACTS = 17;
const WIDTH = 32;
const NUM_SEEN = 8;
const AROUND = 4 * NUM_SEEN;
const OF_OUTPUT = NUM_FACTS + AROUND + 3;
const PERCEPTRONS = [
  numWeights(NUM_LOOKS + 3, NUM_SEEN),
  numWeights(NUM_FACTS, NUM_SEEN),
  numWeights(NUM_LOOKS + 3 + AROUND, 1),
  numWeights(NUM_LOOKS + 6 + AROUND, 1),
  numWeights(OF_OUTPUT, 1),
];
const STATISTICS = 2 * NUM_LOOKS + 2 * NUM_FACTS;
export const NUM_WEIGHTS = PERCEPTRONS.reduce((sum, number) => sum + number, STATISTICS);

/** As `waving_scorer` in tests/stages/test_superpixels.py. */
export function wavingScorer(): ClickScorer {
  return new ClickScorer(Float32Array.from({ length: NUM_WEIGHTS }, (_, at) => 0.4 * Math.sin(2.3 * at) + Number(at < STATISTICS)));
}

/** An output is worth what the model says of it, a region less than any. */
export function trustingScorer(): ClickScorer {
  const weights = new Float32Array(NUM_WEIGHTS);
  weights.fill(1, 0, STATISTICS);
  weights.fill(0, 0, NUM_LOOKS);
  weights.fill(0, 2 * NUM_LOOKS, 2 * NUM_LOOKS + NUM_FACTS);
  const ofOutput = NUM_WEIGHTS - PERCEPTRONS[4];
  weights[ofOutput - 1] = -9; // of the regions' last layer, the bias
  const second = ofOutput + OF_OUTPUT * WIDTH + WIDTH;
  weights[ofOutput] = weights[second] = weights[second + WIDTH * WIDTH + WIDTH] = 1;
  return new ClickScorer(weights);
}

function numWeights(widthIn: number, widthOut: number): number {
  return (widthIn + 1) * WIDTH + (WIDTH + 1) * WIDTH + (WIDTH + 1) * widthOut;
}
