import { useEffect, useRef, useState } from "preact/hooks";
import type { TaskKind, Verdict } from "./api";
import { KEY_SHEET } from "./keys";

const REVIEWS: [Verdict, string][] = [
  ["good", "good, as I leave it"],
  ["redo", "to be done again: back to the queue with my note, its masks as they were handed in"],
  ["reject", "rejected: none of its masks is kept"],
];
const VERDICTS: Record<TaskKind, [Verdict, string][]> = {
  annotate: [],
  review: REVIEWS,
  audit: [
    ["good", "right, as I leave it"],
    ["reject", "not to be judged: it is left out of the audit"],
  ],
};
const REASONS = ["nothing to annotate", "too blurred or dark", "not a photograph", "should not be shown to anyone"];

export function KeySheet(props: { onClose: () => void }) {
  return (
    <Dialog label="Keys" closingKey="?" onClose={props.onClose}>
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

/** `masks`: accepted ones, which skipping leaves out. */
export function SkipDialog(props: { masks: number; onClose: () => void; onSkip: (reason: string) => void }) {
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
        {props.masks > 0 && (
          <p class="error">
            Its {props.masks === 1 ? "mask is" : `${props.masks} masks are`} left out; submitting keeps what is accepted.
          </p>
        )}
        <button type="submit" class="primary" disabled={!given}>
          Skip
        </button>
      </form>
    </Dialog>
  );
}

/** How a review or an audit ends. */
export function VerdictDialog(props: {
  kind: TaskKind;
  onClose: () => void;
  onVerdict: (verdict: Verdict, note: string) => void;
}) {
  const [verdict, setVerdict] = useState<Verdict>("good");
  const [note, setNote] = useState("");
  const isGiven = verdict === "good" || note.trim() !== "";

  function handIn(event: Event): void {
    event.preventDefault();
    if (!isGiven) return;
    props.onClose();
    props.onVerdict(verdict, note.trim());
  }

  return (
    <Dialog label="Verdict" onClose={props.onClose}>
      <form onSubmit={handIn}>
        <fieldset>
          <legend>The image is</legend>
          {VERDICTS[props.kind].map(([name, text], index) => (
            <label key={name}>
              <input type="radio" name="verdict" autofocus={index === 0} checked={verdict === name} onChange={() => setVerdict(name)} />
              {text}
            </label>
          ))}
          <label class="note">
            {verdict === "good" ? "Note, if there is anything to say" : "Why, for whoever reads it"}
            <textarea
              rows={3}
              maxLength={1000}
              value={note}
              onInput={(event) => setNote(event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) handIn(event);
              }}
            />
          </label>
        </fieldset>
        <button type="submit" class="primary" disabled={!isGiven}>
          Hand in
        </button>
      </form>
    </Dialog>
  );
}

/** `closingKey`: beside Escape; none where something may be written, which it would throw away. */
function Dialog(props: {
  label: string;
  closingKey?: string;
  onClose: () => void;
  children: preact.ComponentChildren;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog
      ref={dialog}
      aria-label={props.label}
      onClose={props.onClose}
      onKeyDown={(event) => {
        if (event.key === props.closingKey) dialog.current?.close();
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
