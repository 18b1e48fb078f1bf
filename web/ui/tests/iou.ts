import { area, type Mask, subtract } from "../src/mask";

export function intersectionOverUnion(a: Mask, b: Mask): number {
  const intersection = area(a) - area(subtract(a, b));
  return intersection / (area(a) + area(b) - intersection);
}
