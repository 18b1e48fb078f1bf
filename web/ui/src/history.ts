/** One line of undo and redo over clicks, boxes and strokes alike. */

export interface History<Action> {
  readonly done: readonly Action[];
  /** Taken back, the next to redo last. */
  readonly undone: readonly Action[];
}

export function emptyHistory<Action>(): History<Action> {
  return { done: [], undone: [] };
}

export function push<Action>(history: History<Action>, action: Action): History<Action> {
  return { done: [...history.done, action], undone: [] };
}

export function undo<Action>(history: History<Action>): History<Action> {
  if (history.done.length === 0) return history;
  const last = history.done[history.done.length - 1];
  return { done: history.done.slice(0, -1), undone: [...history.undone, last] };
}

export function redo<Action>(history: History<Action>): History<Action> {
  if (history.undone.length === 0) return history;
  const next = history.undone[history.undone.length - 1];
  return { done: [...history.done, next], undone: history.undone.slice(0, -1) };
}
