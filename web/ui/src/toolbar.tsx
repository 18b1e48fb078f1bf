import type { Command } from "./keys";
import type { Tool } from "./tools";
import type { Workspace } from "./workspace";

const TOOLS: readonly [Tool, Command, string, string][] = [
  ["click", "clickTool", "Click", "P"],
  ["brush", "brush", "Brush", "B"],
  ["eraser", "eraser", "Eraser", "E"],
  ["select", "select", "Select", "V"],
];
const OUTPUTS = ["Whole", "Part", "Subpart"];

export function Toolbar(props: { workspace: Workspace; run: (command: Command) => void }) {
  const { workspace, run } = props;
  const drawing = workspace.current?.drawing;
  const session = drawing?.session;
  const choices = session?.choices ?? [];
  const isWorking = workspace.canDraw;
  const isAnnotated = workspace.current?.task.kind === "annotate";

  return (
    <nav class="toolbar" aria-label="Tools">
      <div role="radiogroup" aria-label="Tool">
        {TOOLS.map(([tool, command, name, key]) => (
          <button
            type="button"
            role="radio"
            aria-checked={workspace.tools.tool === tool}
            aria-keyshortcuts={key}
            onClick={() => run(command)}
          >
            {name} <kbd>{key}</kbd>
          </button>
        ))}
      </div>
      <div role="group" aria-label="Brush size" class="row">
        <Button label="Smaller brush" keys="[" text="−" onClick={() => run("smaller")} />
        <output aria-label="Brush size in pixels">{2 * workspace.tools.brushRadius} px</output>
        <Button label="Larger brush" keys="]" text="+" onClick={() => run("larger")} />
      </div>
      <div role="radiogroup" aria-label="Whole, part or subpart">
        {OUTPUTS.map((name, output) => (
          <button
            type="button"
            role="radio"
            aria-checked={choices.length > 0 && session?.chosen === output}
            aria-keyshortcuts={String(output + 1)}
            disabled={choices.length === 0}
            onClick={() => run(`output${output}` as Command)}
          >
            {name} <kbd>{choices.length ? choices[output].toFixed(2) : output + 1}</kbd>
          </button>
        ))}
      </div>
      {drawing?.canSnap && (
        <div role="group" aria-label="Edges">
          <Toggle label="Snap" hint="S" on={drawing.snaps} disabled={!isWorking} onClick={() => run("snap")} />
        </div>
      )}
      <div role="group" aria-label="Mask">
        <Button label="Undo" keys="Backspace" text="Undo" hint="⌫" disabled={!isWorking} onClick={() => run("undo")} />
        <Button
          label="Redo"
          keys="Control+Shift+Z"
          text="Redo"
          hint="^⇧Z"
          disabled={!session?.canRedo}
          onClick={() => run("redo")}
        />
        <Button label="Drop the mask" keys="Escape" text="Drop" hint="Esc" disabled={!isWorking} onClick={() => run("clear")} />
        <Button
          label="Accept the mask"
          keys="Enter"
          text="Accept"
          hint="⏎"
          isPrimary
          disabled={!isWorking || (session?.isEmpty ?? true)}
          onClick={() => run("accept")}
        />
      </div>
      <div role="group" aria-label="View">
        <Toggle label="Outlines" hint="O" on={workspace.tools.showOutlines} onClick={() => run("outlines")} />
        <Toggle label="Uncovered" hint="U" on={workspace.tools.showUncovered} onClick={() => run("uncovered")} />
        <Button label="Show the whole image" keys="0" text="Fit" hint="0" onClick={() => run("fit")} />
      </div>
      <div role="group" aria-label="Image" class="last">
        {isAnnotated && (
          <Button label="Skip the image" keys="Control+Space" text="Skip…" hint="^Space" disabled={workspace.phase !== "working"} onClick={() => run("skip")} />
        )}
        <Button
          label={isAnnotated ? "Submit the image" : "Give the verdict"}
          keys="Control+Enter"
          text={isAnnotated ? "Submit" : "Verdict…"}
          hint="^⏎"
          isPrimary
          disabled={workspace.phase !== "working"}
          onClick={() => run("submit")}
        />
        <Button label="List of keys" keys="?" text="Keys" hint="?" onClick={() => run("help")} />
      </div>
    </nav>
  );
}

function Button(props: {
  label: string;
  text: string;
  keys: string;
  hint?: string;
  isPrimary?: boolean;
  disabled?: boolean;
  onClick: () => void;
}) {
  return (
    <button
      type="button"
      class={props.isPrimary ? "primary" : ""}
      aria-label={props.label}
      aria-keyshortcuts={props.keys}
      title={`${props.label} (${props.keys})`}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      {props.text} {props.hint && <kbd>{props.hint}</kbd>}
    </button>
  );
}

function Toggle(props: { label: string; hint: string; on: boolean; disabled?: boolean; onClick: () => void }) {
  const { hint, on, disabled, onClick } = props;
  return (
    <button type="button" aria-pressed={on} aria-keyshortcuts={hint} disabled={disabled} onClick={onClick}>
      {props.label} <kbd>{hint}</kbd>
    </button>
  );
}
