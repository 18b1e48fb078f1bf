import { colourOf } from "./layer";
import type { Workspace } from "./workspace";

export function MaskList(props: { workspace: Workspace }) {
  const { workspace } = props;
  return (
    <aside class="masks" aria-label="Masks">
      <h2 id="accepted">Accepted masks ({workspace.accepted.length})</h2>
      <ol aria-labelledby="accepted">
        {workspace.accepted.map((accepted, index) => {
          const isEdited = workspace.editing === accepted.id;
          return (
            <li key={accepted.id} class={isEdited ? "edited" : ""} data-mask={accepted.id}>
              <Swatch colour={colourOf(accepted.colour)} />
              <button
                type="button"
                class="name"
                aria-label={`Edit mask ${index + 1}`}
                aria-pressed={isEdited}
                onClick={() => workspace.edit(accepted.id)}
                onKeyDown={(event) => {
                  if (event.key !== "Delete") return;
                  event.stopPropagation();
                  workspace.deleteMask(accepted.id);
                }}
              >
                Mask {index + 1}
                <small>{accepted.payload.seconds.toFixed(0)} s</small>
              </button>
              {accepted.refused && <span class="error" title={accepted.refused}>refused</span>}
              <button type="button" aria-label={`Delete mask ${index + 1}`} onClick={() => workspace.deleteMask(accepted.id)}>
                ✕
              </button>
            </li>
          );
        })}
      </ol>
      {workspace.locked.length > 0 && (
        <>
          <h2 id="locked">Locked masks ({workspace.locked.length})</h2>
          <ol aria-labelledby="locked">
            {workspace.locked.map((locked, index) => {
              const isFlagged = workspace.flagged.has(locked.id);
              return (
                <li key={locked.id} class={isFlagged ? "flagged" : ""} data-locked={locked.id}>
                  <span class="name">Locked {index + 1}</span>
                  <button
                    type="button"
                    aria-pressed={isFlagged}
                    aria-label={`Flag locked mask ${index + 1} as wrong`}
                    onClick={() => workspace.toggleFlag(locked.id)}
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
