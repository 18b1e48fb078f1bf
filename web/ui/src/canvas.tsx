/** The two canvases in the page: their size, and what happens on them. */

import { useEffect, useRef } from "preact/hooks";
import { CanvasControl } from "./canvas_control";
import type { Workspace } from "./workspace";

export function ImageCanvas(props: { workspace: Workspace; onControl: (control: CanvasControl) => void }) {
  const { workspace } = props;
  const below = useRef<HTMLCanvasElement>(null);
  const above = useRef<HTMLCanvasElement>(null);
  const control = useRef<CanvasControl | null>(null);

  useEffect(() => {
    const element = above.current;
    if (!element || !below.current) return;
    const made = (control.current = new CanvasControl(workspace, element, below.current));
    props.onControl(made);
    const unwatch = watchSize(element, (size) => made.resize(size));
    const onWheel = (event: WheelEvent): void => made.wheel(event);
    element.addEventListener("wheel", onWheel, { passive: false });
    const unsubscribe = workspace.voice.subscribe(() => made.sync());
    made.sync();
    return () => {
      unwatch();
      element.removeEventListener("wheel", onWheel);
      unsubscribe();
    };
  }, [workspace]);

  return (
    <div class="canvas">
      <canvas ref={below} class="below" aria-hidden="true" />
      <canvas
        ref={above}
        class={`above tool-${workspace.tools.tool}`}
        role="application"
        tabIndex={0}
        aria-label="Image to annotate"
        aria-describedby="status"
        aria-busy={(workspace.current?.drawing.busy ?? 0) > 0}
        data-phase={workspace.phase}
        data-task={workspace.current?.task.task_id ?? ""}
        data-tool={workspace.tools.tool}
        onPointerDown={(event) => control.current?.pointerDown(event)}
        onPointerMove={(event) => control.current?.pointerMove(event)}
        onPointerUp={(event) => control.current?.pointerUp(event)}
        onPointerCancel={() => control.current?.pointerCancel()}
        onPointerLeave={() => control.current?.pointerLeave()}
        onContextMenu={(event) => event.preventDefault()}
      />
    </div>
  );
}

/** Tells the size, and again when it changes or the window has moved to a screen of other pixels. */
function watchSize(element: HTMLElement, tell: (size: DOMRectReadOnly) => void): () => void {
  const now = (): void => tell(element.getBoundingClientRect());
  let media: MediaQueryList | null = null;
  const onRatio = (): void => {
    media?.removeEventListener("change", onRatio);
    media = window.matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`);
    media.addEventListener("change", onRatio);
    now();
  };
  const sizes = new ResizeObserver(now);
  sizes.observe(element);
  onRatio();
  return () => {
    sizes.disconnect();
    media?.removeEventListener("change", onRatio);
  };
}
