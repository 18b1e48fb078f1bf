import { useEffect, useRef, useState } from "preact/hooks";
import { KEY_SHEET } from "./keys";

const REASONS = ["nothing to annotate", "too blurred or dark", "not a photograph", "should not be shown to anyone"];

export function KeySheet(props: { onClose: () => void }) {
  return (
    <Dialog label="Keys" onClose={props.onClose}>
      <div class="sheet">
        {KEY_SHEET.map(([heading, rows]) => (
          <section key={heading}>
            <h3>{heading}</h3>
            <dl>
              {rows.map(([keys, what]) => (
                <div key={keys}>
                  <dt><kbd>{keys}</kbd></dt>
                  <dd>{what}</dd>
                </div>
              ))}
            </dl>
          </section>
        ))}
      </div>
    </Dialog>
  );
}

export function SkipDialog(props: { onClose: () => void; onSkip: (reason: string) => void }) {
  const [reason, setReason] = useState(REASONS[0]);
  const [other, setOther] = useState("");
  const given = reason === "" ? other.trim() : reason;

  function skip(event: Event): void {
    event.preventDefault();
    if (!given) return;
    props.onClose();
    props.onSkip(given);
  }

  return (
    <Dialog label="Skip this image" onClose={props.onClose}>
      <form onSubmit={skip}>
        <fieldset>
          <legend>Why?</legend>
          {REASONS.map((text, index) => (
            <label key={text}>
              <input type="radio" name="reason" autofocus={index === 0} checked={reason === text} onChange={() => setReason(text)} />
              {text}
            </label>
          ))}
          <label>
            <input type="radio" name="reason" checked={reason === ""} onChange={() => setReason("")} />
            another reason
          </label>
          <input
            type="text"
            aria-label="Another reason"
            maxLength={200}
            value={other}
            onInput={(event) => {
              setReason("");
              setOther(event.currentTarget.value);
            }}
          />
        </fieldset>
        <button type="submit" class="primary" disabled={!given}>
          Skip
        </button>
      </form>
    </Dialog>
  );
}

function Dialog(props: { label: string; onClose: () => void; children: preact.ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog
      ref={dialog}
      aria-label={props.label}
      onClose={props.onClose}
      onKeyDown={(event) => {
        if (event.key === "?" && !(event.target instanceof HTMLInputElement)) dialog.current?.close();
      }}
    >
      <header>
        <h2>{props.label}</h2>
        <button type="button" aria-label="Close" onClick={() => dialog.current?.close()}>
          ✕
        </button>
      </header>
      {props.children}
    </dialog>
  );
}
