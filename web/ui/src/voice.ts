/** What the annotator is told, and who is told that something looks different now. */

export interface Voice {
  /** Tells the annotator. */
  say(message: string, isAlarm?: boolean): void;
  /** Something looks different now. */
  changed(): void;
}

export class PageVoice implements Voice {
  message = "";
  isAlarm = false;
  private readonly listeners = new Set<() => void>();

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  say(message: string, isAlarm = false): void {
    this.message = message;
    this.isAlarm = isAlarm;
    this.changed();
  }

  changed(): void {
    for (const listener of this.listeners) listener();
  }
}
