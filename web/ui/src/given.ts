/** A mask that nobody has clicked, such as an automatic one, as the model would have answered it. */

import { inputSize } from "./geometry";
import { contains, type Mask } from "./mask";
import type { Size } from "./rle";

/** What the model is shown for cells wholly inside; minus that outside. As sure as it mostly is. */
const SURE = 10;
/** Places looked at along each side of a cell. */
const SAMPLES = 4;

/** The mask as low-resolution logits (side, side): by how much of each cell it covers. */
export function givenLogits(mask: Mask, size: Size, imageSize: number): Float32Array {
  const side = imageSize / 4;
  const input = inputSize(size, imageSize);
  const [acrossX, acrossY] = [(4 * size.width) / input.width, (4 * size.height) / input.height]; // pixels a cell
  const logits = new Float32Array(side * side).fill(-SURE);
  const first = (from: number, across: number): number => Math.max(0, Math.floor(from / across));
  const last = (to: number, across: number): number => Math.min(side - 1, Math.floor(to / across));
  for (let row = first(mask.y, acrossY); row <= last(mask.y + mask.height, acrossY); row++) {
    for (let column = first(mask.x, acrossX); column <= last(mask.x + mask.width, acrossX); column++) {
      let covered = 0;
      for (let sample = 0; sample < SAMPLES ** 2; sample++) {
        const x = (column + ((sample % SAMPLES) + 0.5) / SAMPLES) * acrossX;
        const y = (row + (Math.floor(sample / SAMPLES) + 0.5) / SAMPLES) * acrossY;
        if (contains(mask, x, y)) covered++;
      }
      logits[row * side + column] = SURE * ((2 * covered) / SAMPLES ** 2 - 1);
    }
  }
  return logits;
}
