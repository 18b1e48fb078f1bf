/**
 * Answers prompts by the decoder in the page or by the server's, whichever is faster.
 *
 * Both run the same file on the same embedding and round their logits to half precision, so their
 * masks are equal. Requests go one at a time: clicks in their order, and between them the latest
 * hover, since each costs more than the time between two movements of the mouse.
 */

import type { Task } from "./api";
import type { Answer, ModelPrompt } from "./prompt";
import { inTime } from "./retry";

export type BackendName = "page" | "server";

/** For so long a click that the server did not answer waits for the page's decoder. */
const PAGE_MILLISECONDS = 10_000;

export interface Backend {
  /** Fetches ahead what `open` will need. */
  prepare(task: Task): void;
  /** Gets the task's embedding ready. */
  open(task: Task): Promise<void>;
  decode(task: Task, prompt: ModelPrompt): Promise<Answer>;
}

export interface DecoderStatus {
  using: BackendName;
  /** Milliseconds for one prompt; null: not measured, or failed. */
  milliseconds: Record<BackendName, number | null>;
}

export class Decoder {
  private task: Task | null = null;
  private openPage: Promise<boolean> = Promise.resolve(false);
  private pageReady = false;
  private queue: { prompt: ModelPrompt; resolve: (answer: Answer) => void; reject: (error: unknown) => void }[] = [];
  private hovering: { prompt: ModelPrompt; resolve: (answer: Answer | null) => void } | null = null;
  private running = false;
  private measured = false;
  readonly status: DecoderStatus = { using: "server", milliseconds: { page: null, server: null } };
  /** The status has changed. */
  onStatus: () => void = () => {};

  constructor(
    private readonly backends: Record<BackendName, Backend>,
    private readonly forced: BackendName | null = null,
    private readonly now: () => number = () => performance.now(),
  ) {
    if (forced) this.status.using = forced;
  }

  /** The task will be opened soon. */
  prepare(task: Task): void {
    if (this.forced !== "server") this.backends.page.prepare(task);
  }

  /** Takes up a task. Answers come at once from the server, and from the page when it is ready. */
  open(task: Task): void {
    this.task = task;
    this.pageReady = false;
    this.dropHover();
    if (this.forced === "server") return;
    this.openPage = this.backends.page.open(task).then(
      () => {
        if (this.task !== task) return false;
        this.pageReady = true;
        if (!this.measured) void this.measure(task);
        return true;
      },
      (error) => {
        console.warn("the page's decoder failed to open", error);
        return false;
      },
    );
  }

  /** Answers in the order asked. */
  ask(prompt: ModelPrompt): Promise<Answer> {
    this.dropHover();
    return new Promise((resolve, reject) => {
      this.queue.push({ prompt, resolve, reject });
      void this.run();
    });
  }

  /** Null when a later hover or a click came first, or nothing could answer. */
  hover(prompt: ModelPrompt): Promise<Answer | null> {
    this.dropHover();
    return new Promise((resolve) => {
      this.hovering = { prompt, resolve };
      void this.run();
    });
  }

  dropHover(): void {
    this.hovering?.resolve(null);
    this.hovering = null;
  }

  private async run(): Promise<void> {
    if (this.running) return;
    this.running = true;
    for (;;) {
      const click = this.queue.shift();
      const hover = this.hovering;
      if (click) {
        await this.answer(click.prompt).then(click.resolve, click.reject);
      } else if (hover) {
        this.hovering = null;
        await this.answer(hover.prompt).then(hover.resolve, () => hover.resolve(null));
      } else {
        break;
      }
    }
    this.running = false;
  }

  private async answer(prompt: ModelPrompt): Promise<Answer> {
    const task = this.task;
    if (!task) throw new Error("no task is open");
    if (this.forced === "page") await this.openPage;
    const first: BackendName = this.status.using === "page" && (this.pageReady || this.forced) ? "page" : "server";
    try {
      return await this.backends[first].decode(task, prompt);
    } catch (error) {
      if (this.forced) throw error;
      console.warn(`the ${first}'s decoder failed`, error);
      if (first === "page") {
        this.pageReady = false;
        this.use("server");
        return this.backends.server.decode(task, prompt);
      }
      if (!(await inTime(this.openPage, PAGE_MILLISECONDS).catch(() => false))) throw error;
      return this.backends.page.decode(task, prompt);
    }
  }

  /** One prompt to each, after one that is not measured: the first warms up. */
  private async measure(task: Task): Promise<void> {
    this.measured = true;
    const middle: ModelPrompt = {
      pointCoords: [[task.image_size / 2, task.image_size / 2], [0, 0]],
      pointLabels: [1, -1],
      maskInput: null,
    };
    for (const name of ["page", "server"] as const) {
      if (this.forced && this.forced !== name) continue;
      try {
        await this.backends[name].decode(task, middle);
        const start = this.now();
        await this.backends[name].decode(task, middle);
        this.status.milliseconds[name] = this.now() - start;
      } catch (error) {
        console.warn(`the ${name}'s decoder failed its first prompt`, error);
        if (name === "page" && !this.forced) this.pageReady = false;
      }
    }
    const { page, server } = this.status.milliseconds;
    this.use(page !== null && (server === null || page <= server) ? "page" : "server");
  }

  private use(name: BackendName): void {
    this.status.using = this.forced ?? name;
    this.onStatus();
  }
}
