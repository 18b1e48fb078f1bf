import { colourOf } from "./layer";
import type { Workspace } from "./workspace";

export function MaskList(props: { workspace: Workspace }) {
  const { current } = props.workspace;
  const pointing = (id: string) => ({
    onMouseEnter: () => current?.point(id),
    onMouseLeave: () => current?.point(null),
    onFocusIn: () => current?.point(id),
    onFocusOut: () => current?.point(null),
  });
  const { accepted: masks, locked, flagged } = current?.finished ?? { accepted: [], locked: [], flagged: new Set<string>() };
  return (
    <aside class="masks" aria-label="Masks">
      <h2 id="accepted">Accepted masks ({masks.length})</h2>
      <ol aria-labelledby="accepted">
        {masks.map((accepted, index) => {
          const isEdited = current?.drawing.editing === accepted.id;
          return (
            <li key={accepted.id} class={isEdited ? "edited" : ""} data-mask={accepted.id} {...pointing(accepted.id)}>
              <Swatch colour={colourOf(accepted.colour)} />
              <button
                type="button"
                class="name"
                aria-label={`Edit mask ${index + 1}`}
                aria-pressed={isEdited}
                onClick={() => {
                  current?.point(null); // it is worked on now, among the others
                  current?.edit(accepted.id);
                }}
                onKeyDown={(event) => {
                  if (event.key !== "Delete") return;
                  event.stopPropagation();
                  current?.deleteMask(accepted.id);
                }}
              >
                Mask {index + 1}
                <small>{accepted.payload.seconds.toFixed(0)} s</small>
              </button>
              {accepted.refused && <span class="error" title={accepted.refused}>refused</span>}
              <button type="button" aria-label={`Delete mask ${index + 1}`} onClick={() => current?.deleteMask(accepted.id)}>
                ✕
              </button>
            </li>
          );
        })}
      </ol>
      {locked.length > 0 && (
        <>
          <h2 id="locked">Locked masks ({locked.length})</h2>
          <ol aria-labelledby="locked">
            {locked.map(({ id }, index) => {
              const isFlagged = flagged.has(id);
              return (
                <li key={id} class={isFlagged ? "flagged" : ""} data-locked={id} {...pointing(id)}>
                  <span class="name">Locked {index + 1}</span>
                  <button
                    type="button"
                    aria-pressed={isFlagged}
                    aria-label={`Flag locked mask ${index + 1} as wrong`}
                    onClick={() => current?.toggleFlag(id)}
                  >
                    {isFlagged ? "wrong" : "flag"}
                  </button>
                </li>
              );
            })}
          </ol>
        </>
      )}
    </aside>
  );
}

function Swatch(props: { colour: readonly [number, number, number] }) {
  return <span class="swatch" aria-hidden="true" style={{ backgroundColor: `rgb(${props.colour.join(" ")})` }} />;
}
