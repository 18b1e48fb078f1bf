import type { Me } from "./api";
import { MODE_NAMES, type Mode, modesOf } from "./modes";

/** Nothing for those who have no choice. */
export function ModeLinks(props: { me: Me; mode: Mode; reviewsLeft: number }) {
  const modes = modesOf(props.me);
  if (modes.length === 1) return null;
  return (
    <nav class="modes" aria-label="Modes">
      {modes.map((mode) => (
        <a key={mode} href={`#${mode}`} aria-current={mode === props.mode ? "page" : undefined}>
          {MODE_NAMES[mode]}
          {mode === "review" && props.reviewsLeft > 0 && ` (${props.reviewsLeft})`}
        </a>
      ))}
    </nav>
  );
}
