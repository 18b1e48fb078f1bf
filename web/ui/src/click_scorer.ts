/** What a click means: the worth of masks by the regions that hold it, as model/click_scorer.py has it. */

const NUM_LOOKS = 20;
const NUM_FACTS = 17;
const WIDTH = 32;
const NUM_SEEN = 8;
const FARTHEST = 4;
const RELATIONS = 3;
const EXPECTATIONS = 3;
const AROUND = 4 * NUM_SEEN;

/** The regions R around a click, one within the other, and the K outputs of the model. */
export interface Known {
  /** (R, NUM_LOOKS) */
  looks: readonly (readonly number[])[];
  /** (R) of the masks that the regions make. */
  areas: readonly number[];
  /** (K, NUM_FACTS); the first is what the model says of the output. */
  facts: readonly (readonly number[])[];
  /** (R, K) IoU of these masks with outputs. */
  ious: readonly (readonly number[])[];
}

export interface Worth {
  /** IoU with what is meant: of the outputs, and then of the masks that the regions make. */
  worth: number[];
  /** (R) that the mask of a region is what is meant; at most 1 together. */
  chances: number[];
}

export class ClickScorer {
  private readonly looks: Standard;
  private readonly facts: Standard;
  private readonly seenOfRegion: Perceptron;
  private readonly seenOfOutput: Perceptron;
  private readonly chance: Perceptron;
  private readonly ofRegion: Perceptron;
  private readonly ofOutput: Perceptron;

  /** Of all its numbers, in the order in which the engine's has them. */
  constructor(weights: Float32Array) {
    let at = 0;
    const take = (count: number): Float32Array => weights.subarray(at, (at += count));
    const perceptron = (widthIn: number, widthOut: number): Perceptron => [
      { weights: take(widthIn * WIDTH), biases: take(WIDTH) },
      { weights: take(WIDTH * WIDTH), biases: take(WIDTH) },
      { weights: take(WIDTH * widthOut), biases: take(widthOut) },
    ];
    this.looks = { mean: take(NUM_LOOKS), deviation: take(NUM_LOOKS) };
    this.facts = { mean: take(NUM_FACTS), deviation: take(NUM_FACTS) };
    this.seenOfRegion = perceptron(NUM_LOOKS + RELATIONS, NUM_SEEN);
    this.seenOfOutput = perceptron(NUM_FACTS, NUM_SEEN);
    this.chance = perceptron(NUM_LOOKS + RELATIONS + AROUND, 1);
    this.ofRegion = perceptron(NUM_LOOKS + RELATIONS + AROUND + EXPECTATIONS, 1);
    this.ofOutput = perceptron(NUM_FACTS + AROUND + EXPECTATIONS, 1);
    if (at !== weights.length) throw new Error(`a scorer of clicks of ${weights.length} numbers instead of ${at}`);
  }

  of({ looks, areas, facts, ious }: Known): Worth {
    const exists = areas.map((area) => area > 0);
    const ofLooks = looks.map((look, region) => [
      ...standard(look, this.looks),
      ...relations(ious[region], facts).map((value) => 4 * value - 2),
    ]);
    const ofFacts = facts.map((fact) => standard(fact, this.facts));
    const around = [
      ...meanAndMost(ofLooks.filter((_, region) => exists[region]).map((look) => answer(this.seenOfRegion, look))),
      ...meanAndMost(ofFacts.map((fact) => answer(this.seenOfOutput, fact))),
    ];
    const regions = ofLooks.map((look) => [...look, ...around]);
    const likely = regions.map((region, at) => (exists[at] ? answer(this.chance, region)[0] : -Infinity));
    const chances = softmax([...likely, 0]).slice(0, -1);
    const ofOutputs = ofFacts.map((fact, output) => {
      const expected = expectations(chances, ious.map((row) => row[output]));
      return answer(this.ofOutput, [...fact, ...around, ...expected])[0];
    });
    const ofRegions = regions.map((region, at) => {
      return answer(this.ofRegion, [...region, ...expectations(chances, nestedIous(areas, at))])[0];
    });
    return { worth: [...ofOutputs, ...ofRegions].map((logit) => 1 / (1 + Math.exp(-logit))), chances };
  }
}

/** Of one of some masks, by their areas, with all, where they lie one within the other. */
export function nestedIous(areas: readonly number[], one: number): number[] {
  return areas.map((area) => Math.min(area, areas[one]) / Math.max(area, areas[one], 1));
}

interface Standard {
  mean: Float32Array;
  deviation: Float32Array;
}

interface Layer {
  /** (out, in) */
  weights: Float32Array;
  biases: Float32Array;
}

type Perceptron = readonly Layer[];

/** Of a region with the outputs: the most by what the model says of them, the most, the mean. */
function relations(ious: readonly number[], facts: Known["facts"]): number[] {
  const said = ious.map((iou, output) => iou * facts[output][0]);
  const sum = ious.reduce((total, iou) => total + iou, 0);
  return [Math.max(...said), Math.max(...ious), sum / ious.length];
}

/** Of IoUs by the chances of the regions: their sum and deviation, and the chance that it is any of them. */
function expectations(chances: readonly number[], ious: readonly number[]): number[] {
  let [total, mean, square] = [0, 0, 0];
  chances.forEach((chance, region) => {
    total += chance;
    mean += chance * ious[region];
    square += chance * ious[region] ** 2;
  });
  const deviation = Math.sqrt(Math.max(square - mean ** 2, 1e-4));
  return [4 * mean - 1, 4 * deviation - 1, total];
}

function standard(values: readonly number[], { mean, deviation }: Standard): number[] {
  return values.map((value, at) => Math.min(Math.max((value - mean[at]) / deviation[at], -FARTHEST), FARTHEST));
}

function softmax(logits: readonly number[]): number[] {
  const most = Math.max(...logits);
  const values = logits.map((logit) => Math.exp(logit - most));
  const sum = values.reduce((total, value) => total + value, 0);
  return values.map((value) => value / sum);
}

/** Of what is seen of each, where it is above 0. */
function meanAndMost(seen: readonly (readonly number[])[]): number[] {
  const positive = Array.from({ length: NUM_SEEN }, (_, at) => seen.map((one) => Math.max(0, one[at])));
  const means = positive.map((values) => values.reduce((total, value) => total + value, 0) / Math.max(1, values.length));
  return [...means, ...positive.map((values) => Math.max(0, ...values))];
}

/** The last layer's numbers. */
function answer(layers: Perceptron, values: readonly number[]): readonly number[] {
  let current = values;
  layers.forEach(({ weights, biases }, layer) => {
    current = Array.from(biases, (bias, out) => {
      let sum = bias;
      for (let at = 0; at < current.length; at++) sum += weights[out * current.length + at] * current[at];
      return layer < layers.length - 1 ? Math.max(0, sum) : sum;
    });
  });
  return current;
}
