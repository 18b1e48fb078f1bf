/** From values to places on a chart. */

/** Round values from 0 on that span at least `highest`, about five of them. */
export function ticks(highest: number): number[] {
  if (!(highest > 0) || !Number.isFinite(highest)) return [0, 1];
  const rough = highest / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) as number) * power;
  const count = Math.ceil(highest / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toPrecision(12)));
}

/** Where the centre of each bin lies when bins are as wide as their counts: 0 to 1. */
export function binCentres(counts: readonly number[]): number[] {
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  let before = 0;
  return counts.map((count) => {
    const centre = (before + count / 2) / total;
    before += count;
    return centre;
  });
}

/** For people: no more digits than matter. */
export function readable(value: number): string {
  if (value === 0) return "0";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits });
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(share > 0 && share < 0.995 ? 1 : 0)} %`;
}
