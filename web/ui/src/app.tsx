/** The page: who is there, and the tool they work with. */

import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { Api, type Me, Refused } from "./api";
import { ImageCanvas } from "./canvas";
import type { CanvasControl } from "./canvas_control";
import type { BackendName } from "./decoder";
import { Dashboard } from "./dashboard";
import { KeySheet, SkipDialog, VerdictDialog } from "./dialogs";
import { type Command, commandOf, isForElement } from "./keys";
import { Login } from "./login";
import { MaskList } from "./mask_list";
import { type Mode, modeAt, modesOf } from "./modes";
import type { OpenTask } from "./open_task";
import { Header, StatusLine } from "./status";
import { Toolbar } from "./toolbar";
import { Workspace } from "./workspace";

export function App() {
  const api = useMemo(() => new Api(), []);
  const [me, setMe] = useState<Me | null>(null);
  const [isSignedOut, setSignedOut] = useState(false);
  const [trouble, setTrouble] = useState("");
  const [workspace, setWorkspace] = useState<Workspace | null>(null);
  const [mode, setMode] = useState<Mode>("annotate");

  async function signedIn(): Promise<void> {
    try {
      const now = await api.me();
      if (workspace && me && (now.name !== me.name || now.run_id !== me.run_id)) return location.reload();
      api.account = now.name;
      setMe(now);
      setSignedOut(false);
      setTrouble("");
      if (workspace) return workspace.goOn();
      const wanted = modeAt(location.hash, modesOf(now));
      setMode(wanted);
      if (wanted === "dashboard") return;
      const made = new Workspace(api, now, wanted, forcedDecoder());
      setWorkspace(made);
      made.start();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return setSignedOut(true);
      setTrouble(`The server does not answer; trying again. (${(error as Error).message})`);
      setTimeout(signedIn, 3000);
    }
  }

  useEffect(() => {
    api.onSignedOut = () => setSignedOut(true);
    void signedIn();
  }, []);

  useEffect(() => {
    // Another mode is another page, which begins with nothing on its desk.
    const onHash = async (): Promise<void> => {
      if (!me || modeAt(location.hash, modesOf(me)) === mode) return;
      if (!workspace || (await workspace.leave())) location.reload();
      else history.replaceState(null, "", `#${mode}`);
    };
    window.addEventListener("hashchange", onHash);
    return () => window.removeEventListener("hashchange", onHash);
  }, [me, mode, workspace]);

  async function leave(): Promise<void> {
    if (workspace && !(await workspace.leave())) return;
    await api.logout().catch(() => {});
    location.reload();
  }

  return (
    <>
      {isSignedOut && <Login api={api} again={workspace !== null} onSignedIn={signedIn} />}
      {workspace && <Desk workspace={workspace} mode={mode} isActive={!isSignedOut} onLeave={leave} />}
      {me && mode === "dashboard" && <Dashboard api={api} me={me} isActive={!isSignedOut} onLeave={leave} />}
      {!workspace && mode !== "dashboard" && !isSignedOut && <p class="login" role="status">{trouble || "…"}</p>}
    </>
  );
}

function Desk(props: { workspace: Workspace; mode: Mode; isActive: boolean; onLeave: () => void }) {
  const { workspace } = props;
  const [, show] = useReducer((count: number) => count + 1, 0);
  const [dialog, setDialog] = useState<OpenDialog | null>(null);
  const control = useRef<CanvasControl | null>(null);
  useEffect(() => workspace.voice.subscribe(() => show(undefined)), [workspace]);
  useEffect(() => {
    const onGone = (): void => workspace.abandon();
    const onOnline = (): void => workspace.goOn();
    const onLeave = (event: BeforeUnloadEvent): void => {
      if (workspace.unsaved > 0 || workspace.current?.isUnfinished) event.preventDefault();
    };
    window.addEventListener("beforeunload", onLeave);
    window.addEventListener("pagehide", onGone);
    window.addEventListener("online", onOnline);
    return () => {
      window.removeEventListener("beforeunload", onLeave);
      window.removeEventListener("pagehide", onGone);
      window.removeEventListener("online", onOnline);
    };
  }, [workspace]);

  function run(command: Command, { shiftKey = false, repeat = false } = {}): void {
    if (command === "help") return setDialog({ name: "keys", about: null });
    const kind = workspace.current?.task.kind ?? "annotate";
    if (kind !== "annotate" && (command === "submit" || command === "skip")) {
      return workspace.whenReady((about) => setDialog({ name: "verdict", about }));
    }
    if (command === "skip") {
      return workspace.phase === "working" ? setDialog({ name: "skip", about: workspace.current }) : undefined;
    }
    if (!control.current?.run(command, shiftKey)) runCommand(workspace, command, repeat);
  }

  useEffect(() => {
    if (!props.isActive) return;
    const onKeyDown = (event: KeyboardEvent): void => {
      workspace.input();
      if (isForElement(event, event.target)) return;
      const command = commandOf(event);
      if (!command) return;
      event.preventDefault();
      if (event.repeat && !REPEATED.has(command)) return;
      run(command, event);
    };
    const onKeyUp = (event: KeyboardEvent): void => {
      if (event.key.toLowerCase() === "h") workspace.tools.hide(false);
      if (event.key === " ") control.current?.releaseSpace();
    };
    const onBlur = (): void => {
      workspace.tools.hide(false);
      control.current?.releaseSpace();
    };
    const onInput = (): void => workspace.input();
    window.addEventListener("keydown", onKeyDown);
    window.addEventListener("keyup", onKeyUp);
    window.addEventListener("blur", onBlur);
    for (const name of ["pointermove", "pointerdown", "wheel"]) window.addEventListener(name, onInput, { passive: true });
    return () => {
      window.removeEventListener("keydown", onKeyDown);
      window.removeEventListener("keyup", onKeyUp);
      window.removeEventListener("blur", onBlur);
      for (const name of ["pointermove", "pointerdown", "wheel"]) window.removeEventListener(name, onInput);
    };
  }, [workspace, props.isActive]);

  return (
    <div class="desk" inert={!props.isActive} onMouseDown={leaveKeyboard}>
      <Header workspace={workspace} mode={props.mode} onLeave={props.onLeave} />
      <Toolbar workspace={workspace} run={run} />
      <main>
        <ImageCanvas workspace={workspace} onControl={(made) => (control.current = made)} />
        {workspace.phase === "waiting" && <p class="notice">Nothing is left to {props.mode} now.</p>}
        {workspace.current?.task.note && <p class="note">A reviewer sent this back: {workspace.current.task.note}</p>}
      </main>
      <MaskList workspace={workspace} />
      <StatusLine workspace={workspace} />
      {dialog && (!dialog.about || dialog.about === workspace.current) && (
        <DeskDialog workspace={workspace} name={dialog.name} onClose={() => setDialog(null)} />
      )}
    </div>
  );
}

/** A button that is clicked leaves the keyboard with the image: Enter goes on to accept. */
function leaveKeyboard(event: MouseEvent): void {
  if (event.target instanceof Element && event.target.closest("button")) event.preventDefault();
}

/** `about`: the image that it asks about; once that is gone, so is the question. */
interface OpenDialog {
  name: "keys" | "skip" | "verdict";
  about: OpenTask | null;
}

function DeskDialog(props: { workspace: Workspace; name: OpenDialog["name"]; onClose: () => void }) {
  const { workspace, name, onClose } = props;
  if (name === "keys") return <KeySheet onClose={onClose} />;
  if (name === "skip") {
    const masks = workspace.current?.finished.accepted.length ?? 0;
    return <SkipDialog masks={masks} onClose={onClose} onSkip={(reason) => workspace.skip(reason)} />;
  }
  const kind = workspace.current?.task.kind ?? "review";
  return <VerdictDialog kind={kind} onClose={onClose} onVerdict={(verdict, note) => workspace.review(verdict, note)} />;
}

/** Commands that a held key goes on giving. */
const REPEATED = new Set<Command>(["undo", "redo", "zoomIn", "zoomOut", "smaller", "larger", "left", "right", "up", "down"]);

function runCommand(workspace: Workspace, command: Command, isHeld: boolean): void {
  switch (command) {
    case "output0":
    case "output1":
    case "output2":
      return workspace.current?.drawing.choose(Number(command.slice(-1)));
    case "clickTool":
      return workspace.takeTool("click");
    case "brush":
    case "eraser":
    case "select":
      return workspace.takeTool(command);
    case "snap":
      return workspace.current?.drawing.toggleSnap();
    case "smaller":
      return workspace.tools.resizeBrush(1 / 1.2);
    case "larger":
      return workspace.tools.resizeBrush(1.2);
    case "undo":
      return workspace.current?.undo(isHeld);
    case "redo":
      return workspace.current?.drawing.redo();
    case "accept":
      return workspace.current?.accept();
    case "clear":
      return workspace.current?.clear();
    case "delete":
      return workspace.current?.deleteMask();
    case "outlines":
      return workspace.tools.toggle("showOutlines");
    case "uncovered":
      return workspace.tools.toggle("showUncovered");
    case "hide":
      return workspace.tools.hide(true);
    case "submit":
      return workspace.submit();
  }
}

/** `?decoder=page` or `?decoder=server` uses that one alone, for tests and for finding faults. */
function forcedDecoder(): BackendName | null {
  const name = new URLSearchParams(location.search).get("decoder");
  return name === "page" || name === "server" ? name : null;
}
