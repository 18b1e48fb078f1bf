/** The two that can answer a prompt: a worker of this page, and the server. */

import type { Api, Task } from "./api";
import type { Backend } from "./decoder";
import type { WorkerReply, WorkerRequest } from "./decoder.worker";
import type { Answer, ModelPrompt } from "./prompt";

const DECODE_MILLISECONDS = 15_000;

type Message<Request = WorkerRequest> = Request extends unknown ? Omit<Request, "id"> : never;

export class PageBackend implements Backend {
  private worker: Worker | null = null;
  private readonly calls = new Map<number, { resolve: (reply: WorkerReply) => void; reject: (error: Error) => void }>();
  private nextId = 0;

  prepare(task: Task): void {
    this.call({ kind: "prepare", ...embeddingOf(task) }).catch(() => {}); // opening it will tell
  }

  async open(task: Task): Promise<void> {
    await this.call({ kind: "open", ...embeddingOf(task), embeddingShape: task.embedding_shape });
  }

  async decode(task: Task, prompt: ModelPrompt): Promise<Answer> {
    const side = task.image_size / 4;
    const imageId = String(task.image_id);
    const reply = await this.call({ kind: "decode", imageId, prompt, side }, DECODE_MILLISECONDS);
    if (!("lowResMasks" in reply) || !reply.lowResMasks || !reply.predictedIou) throw new Error("no answer");
    return { lowResMasks: reply.lowResMasks, predictedIou: reply.predictedIou };
  }

  private call(message: Message, milliseconds?: number): Promise<WorkerReply> {
    this.worker ??= this.start();
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject });
      if (milliseconds) setTimeout(() => this.fail(id, `no answer within ${milliseconds} ms`), milliseconds);
      this.worker?.postMessage({ id, ...message });
    });
  }

  private start(): Worker {
    const worker = new Worker(new URL("./decoder.worker.ts", import.meta.url), { type: "module", name: "decoder" });
    worker.onmessage = ({ data }: MessageEvent<WorkerReply>) => {
      if ("error" in data) this.fail(data.id, data.error);
      else this.calls.get(data.id)?.resolve(data);
      this.calls.delete(data.id);
    };
    worker.onerror = (event) => {
      worker.terminate();
      for (const id of [...this.calls.keys()]) this.fail(id, event.message || "the worker did not start");
      this.worker = null;
    };
    return worker;
  }

  private fail(id: number, message: string): void {
    this.calls.get(id)?.reject(new Error(message));
    this.calls.delete(id);
  }
}

function embeddingOf(task: Task): { imageId: string; checkpoint: string } {
  return { imageId: String(task.image_id), checkpoint: task.checkpoint };
}

export class ServerBackend implements Backend {
  constructor(private readonly api: Api) {}

  prepare(): void {}

  async open(): Promise<void> {}

  decode(task: Task, prompt: ModelPrompt): Promise<Answer> {
    return this.api.decode(task.image_id, prompt);
  }
}
