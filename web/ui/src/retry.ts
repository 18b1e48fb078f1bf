/** Requests that wait until the server is there and knows who asks. */

import { Refused, Unreached } from "./api";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 5000;
const SIGN_IN_MILLISECONDS = 60_000;

/** Sleeps that a sign-in, or a network that is back, cuts short. */
export class Sleeper {
  private readonly wakeUps = new Set<() => void>();

  sleep(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.wakeUps.delete(done);
        resolve();
      };
      const timer = setTimeout(done, milliseconds);
      this.wakeUps.add(done);
    });
  }

  wake(): void {
    for (const done of [...this.wakeUps]) done();
  }
}

/** Throws when it takes longer. */
export function inTime<Value>(promise: Promise<Value>, milliseconds: number): Promise<Value> {
  const late = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error(`no answer within ${milliseconds} ms`)), milliseconds);
  });
  return Promise.race([promise, late]);
}

/**
 * Repeats a request until it is answered, or has been tried so often, not counting those of somebody
 * who is signed out; errors that waiting cannot mend are thrown.
 */
export async function untilReached<Result>(
  request: () => Promise<Result>,
  sleep: (milliseconds: number) => Promise<void>,
  say: (trouble: string) => void,
  tries = Infinity,
): Promise<Result> {
  for (let [delay, left] = [FIRST_DELAY, tries]; ; delay = Math.min(2 * delay, LONGEST_DELAY)) {
    try {
      return await request();
    } catch (error) {
      const isSignedOut = error instanceof Refused && error.status === 401;
      if (!isSignedOut && (!(error instanceof Unreached) || --left <= 0)) throw error;
      say(isSignedOut ? "Signed out." : `The server does not answer; trying again. (${error.message})`);
      await sleep(isSignedOut ? SIGN_IN_MILLISECONDS : delay);
    }
  }
}
