/** What somebody may do here, each at an address of its own: `#review`. */

import type { Me, TaskKind } from "./api";

export type Mode = TaskKind | "dashboard";

export const MODE_NAMES: Record<Mode, string> = {
  annotate: "Annotate",
  review: "Review",
  audit: "Audit",
  dashboard: "Dashboard",
};

/** At least one; the first is where somebody begins. */
export function modesOf({ role, kinds }: Pick<Me, "role" | "kinds">): readonly Mode[] {
  if (role === "annotator") return ["annotate"];
  return role === "manager" ? [...kinds, "dashboard"] : kinds;
}

/** What an address asks for, if it may be. */
export function modeAt(hash: string, modes: readonly Mode[]): Mode {
  return modes.find((mode) => hash === `#${mode}`) ?? modes[0];
}
