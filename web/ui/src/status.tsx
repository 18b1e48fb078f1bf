import { useEffect, useState } from "preact/hooks";
import type { Progress } from "./api";
import { ModeLinks } from "./mode_links";
import type { Mode } from "./modes";
import type { Workspace } from "./workspace";

export function Header(props: { workspace: Workspace; mode: Mode; onLeave: () => void }) {
  const { workspace } = props;
  const { me, progress } = workspace;
  const task = workspace.current?.task;
  const stage = (task?.stage ?? me.stage).replace("_", " ");
  return (
    <header class="top">
      <strong>SA Engine</strong>
      <span>
        {me.run}, round {me.round}, {stage}
      </span>
      {task && (
        <span class="file" title={`${task.file_name}, checkpoint ${task.checkpoint}`}>
          {task.file_name.slice(task.file_name.lastIndexOf("/") + 1)}
        </span>
      )}
      <ModeLinks me={me} mode={props.mode} reviewsLeft={progress?.reviews_left ?? 0} />
      <span class="space" />
      {progress && <ProgressLine {...progress} masks={props.mode === "annotate" ? progress.masks : 0} />}
      <span>{me.name}</span>
      <button type="button" onClick={props.onLeave}>
        Sign out
      </button>
    </header>
  );
}

function ProgressLine(progress: Progress) {
  const { submitted, masks, seconds_per_mask: seconds } = progress;
  const all = progress.open + progress.leased + submitted + progress.given_up;
  if (all === 0) return null; // not counted yet
  return (
    <span class="progress">
      <progress value={submitted} max={Math.max(all, 1)} aria-label="Images submitted" />
      {submitted} of {all} images
      {masks > 0 && `, ${masks} ${masks === 1 ? "mask" : "masks"}, ${seconds.toFixed(1)} s each`}
    </span>
  );
}

export function StatusLine(props: { workspace: Workspace }) {
  const { workspace } = props;
  return (
    <footer class="status">
      <span id="status" role="status" aria-live="polite" class={workspace.voice.isAlarm ? "error" : ""}>
        {workspace.voice.message}
      </span>
      <span class="space" />
      {(workspace.current?.drawing.busy ?? 0) > 0 && <span class="asking">asking the model…</span>}
      <Clock workspace={workspace} />
      <DecoderLine workspace={workspace} />
      <span class={workspace.unsaved ? "unsaved" : "saved"} data-unsaved={workspace.unsaved} role="status" aria-label="Saving">
        {workspace.unsaved ? `${workspace.unsaved} not saved yet` : "all saved"}
        {workspace.saves.isFragile && "; this browser has no room to keep it: leave the page open"}
      </span>
    </footer>
  );
}

function Clock(props: { workspace: Workspace }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const { current } = props.workspace;
  if (!current) return null;
  const maskSeconds = current.drawing.session.seconds;
  const isLong = current.task.kind === "annotate" && maskSeconds > current.task.max_mask_seconds;
  return (
    <span title="Active time: pauses above 30 s do not count">
      <span class={isLong ? "unsaved" : ""}>mask {maskSeconds.toFixed(0)} s</span>, image{" "}
      {current.seconds.toFixed(0)} s
    </span>
  );
}

function DecoderLine(props: { workspace: Workspace }) {
  const { using, milliseconds } = props.workspace.decoder.status;
  const measured = (["page", "server"] as const)
    .filter((name) => milliseconds[name] !== null)
    .map((name) => `${name} ${milliseconds[name]?.toFixed(0)} ms`)
    .join(", ");
  return (
    <span data-decoder={using} title={measured || "not measured yet"}>
      decoder: {using}
      {milliseconds[using] !== null && ` ${milliseconds[using]?.toFixed(0)} ms`}
    </span>
  );
}
