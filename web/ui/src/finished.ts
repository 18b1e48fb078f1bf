/** The finished masks of one image: those that were accepted, and in stage two the locked ones. */

import type { MaskPayload, Task } from "./api";
import { area, contains, type Mask } from "./mask";
import { decodeRle, type Rle } from "./rle";
import type { Change } from "./saving";

export interface AcceptedMask {
  id: string;
  mask: Mask;
  payload: MaskPayload;
  /** What the model made of it with nobody there, where its log begins; null for all others. */
  base: Rle | null;
  /** Which of the colours; stays with the mask. */
  colour: number;
  /** Why the server will not take it. */
  refused: string | null;
}

export interface LockedMask {
  id: string;
  mask: Mask;
}

/** Lists are replaced and never changed, so whoever draws them sees by identity what is new. */
export class FinishedMasks {
  accepted: readonly AcceptedMask[] = [];
  readonly locked: readonly LockedMask[];
  /** Ids of locked masks that were called wrong. */
  flagged: ReadonlySet<string>;
  /** The last one last. */
  private deleted: readonly AcceptedMask[] = [];
  private nextColour = 0;

  /** `unsaved`: changes of an earlier visit that never reached the server. */
  constructor(task: Pick<Task, "masks" | "prefilled" | "flagged">, unsaved: readonly Change[]) {
    this.locked = task.prefilled.map(({ id, segmentation }) => ({ id: String(id), mask: decodeRle(segmentation) }));
    this.flagged = new Set(task.flagged.map(String));
    for (const { mask_id, mask, base } of task.masks) {
      this.put({ id: mask_id, mask: decodeRle(mask.segmentation), payload: mask, base, colour: this.nextColour++, refused: null });
    }
    for (const change of unsaved) {
      if (change.kind === "save") this.accept(change.id, decodeRle(change.mask.segmentation), change.mask);
      else if (change.kind === "delete") this.delete(change.id);
      else this.flag(change.id, change.flagged);
    }
    this.deleted = [];
  }

  find(id: string | null): AcceptedMask | undefined {
    return this.accepted.find((accepted) => accepted.id === id);
  }

  /** A new mask, or another shape for one that is there. */
  accept(id: string, mask: Mask, payload: MaskPayload): void {
    const at = this.accepted.findIndex((old) => old.id === id);
    const { colour, base } = at < 0 ? { colour: this.nextColour++, base: null } : this.accepted[at];
    this.put({ id, mask, payload, base, colour, refused: null });
  }

  delete(id: string): void {
    const found = this.find(id);
    if (!found) return;
    this.deleted = [...this.deleted, found];
    this.accepted = this.accepted.filter((accepted) => accepted.id !== id);
  }

  /** The mask that was deleted last is back; null when there is none. */
  bringBack(): AcceptedMask | null {
    const last = this.deleted.at(-1) ?? null;
    if (last) this.put({ ...last, refused: null });
    this.deleted = this.deleted.slice(0, -1);
    return last;
  }

  flag(id: string, isWrong: boolean): void {
    const others = [...this.flagged].filter((flagged) => flagged !== id);
    this.flagged = new Set(isWrong ? [...others, id] : others);
  }

  refuse(id: string, why: string): void {
    const accepted = this.find(id);
    if (accepted) this.put({ ...accepted, refused: why });
  }

  get hasRefused(): boolean {
    return this.accepted.some(({ refused }) => refused !== null);
  }

  /** Active time on all accepted masks. */
  get seconds(): number {
    return this.accepted.reduce((sum, { payload }) => sum + payload.seconds, 0);
  }

  private put(accepted: AcceptedMask): void {
    const at = this.accepted.findIndex(({ id }) => id === accepted.id);
    this.accepted = at < 0 ? [...this.accepted, accepted] : this.accepted.with(at, accepted);
  }
}

/** The one that is hardest to hit. `place`: in the image. */
export function smallestAt<One extends { mask: Mask }>(
  masks: readonly One[],
  place: { x: number; y: number },
): One | null {
  const here = masks.filter(({ mask }) => contains(mask, place.x, place.y));
  return here.length ? here.reduce((a, b) => (area(b.mask) < area(a.mask) ? b : a)) : null;
}
