/** A line over the images of a round, beside the paper's. */

import { binCentres, readable, ticks } from "./scale";

export interface Bin {
  /** Images. */
  count: number;
  value: number;
}

interface ChartProps {
  title: string;
  unit: string;
  bins: readonly Bin[];
  /** Where the paper's began and ended; null when it tells none. */
  paper: readonly [number, number] | null;
}

const [WIDTH, HEIGHT] = [460, 190];
const [LEFT, RIGHT, TOP, BOTTOM] = [38, 12, 12, 26];

export function Chart({ title, unit, bins, paper }: ChartProps) {
  const scale = ticks(Math.max(...bins.map(({ value }) => value), ...(paper ?? [])));
  const total = bins.reduce((sum, { count }) => sum + count, 0);
  const x = (share: number): number => LEFT + share * (WIDTH - LEFT - RIGHT);
  const y = (value: number): number => HEIGHT - BOTTOM - (value / scale[scale.length - 1]) * (HEIGHT - TOP - BOTTOM);
  const centres = binCentres(bins.map(({ count }) => count));
  const points = bins.map(({ value }, index) => ({ x: x(centres[index]), y: y(value), value }));
  return (
    <figure class="chart">
      <figcaption>
        {title}
        {paper && <span class="paper-key"> the paper: {paper[0]} to {paper[1]} {unit}</span>}
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={spoken(title, unit, bins)}>
        {scale.map((value) => (
          <g key={value}>
            <line class="grid" x1={LEFT} x2={WIDTH - RIGHT} y1={y(value)} y2={y(value)} />
            <text x={LEFT - 6} y={y(value) + 4} text-anchor="end">{readable(value)}</text>
          </g>
        ))}
        {paper && <line class="paper" x1={x(0)} x2={x(1)} y1={y(paper[0])} y2={y(paper[1])} />}
        <polyline class="ours" points={points.map((point) => `${point.x},${point.y}`).join(" ")} />
        {points.map((point) => (
          <circle key={point.x} cx={point.x} cy={point.y} r="3">
            <title>{`${readable(point.value)} ${unit}`}</title>
          </circle>
        ))}
        <text x={x(0)} y={HEIGHT - 8}>first image</text>
        <text x={x(1)} y={HEIGHT - 8} text-anchor="end">{readable(total)} {total === 1 ? "image" : "images"}</text>
        {bins.length === 0 && (
          <text x={WIDTH / 2} y={HEIGHT / 2} text-anchor="middle">nothing was handed in yet</text>
        )}
      </svg>
    </figure>
  );
}

function spoken(title: string, unit: string, bins: readonly Bin[]): string {
  if (bins.length === 0) return `${title}: nothing yet`;
  return `${title}: ${readable(bins[0].value)} ${unit} at first, ${readable(bins[bins.length - 1].value)} ${unit} lately`;
}
