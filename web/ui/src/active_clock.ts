/** How long a person has worked: time between inputs counts, unless it was a pause. */

export const LONGEST_GAP_SECONDS = 30;

export class ActiveClock {
  private active = 0;
  private last: number;

  /** `now`: seconds, from any origin. */
  constructor(private readonly now: () => number = () => performance.now() / 1000) {
    this.last = now();
  }

  /** Call at every key, click and movement. */
  input(): void {
    const now = this.now();
    const gap = now - this.last;
    if (gap <= LONGEST_GAP_SECONDS) this.active += gap;
    this.last = now;
  }

  /** Active time so far. A pause that is still going on counts until it proves to be one. */
  seconds(): number {
    const gap = this.now() - this.last;
    return this.active + (gap <= LONGEST_GAP_SECONDS ? gap : 0);
  }
}
