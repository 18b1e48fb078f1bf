import { beforeEach, expect, test, vi } from "vitest";
import type { Task } from "../src/api";
import { type Backend, Decoder } from "../src/decoder";
import type { Answer, ModelPrompt } from "../src/prompt";

const TASK = { image_size: 64, image_id: 1 } as Task;
const prompt = (x: number): ModelPrompt => ({ pointCoords: [[x, 0]], pointLabels: [1], maskInput: null });
const settled = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

beforeEach(() => void vi.spyOn(console, "warn").mockImplementation(() => {})); // it tells what failed

/** Answers when told to, with its own name in the predicted IoU. */
class Manual implements Backend {
  asked: number[] = [];
  waiting: ((error?: Error) => void)[] = [];
  isAutomatic = false;
  constructor(
    private readonly mark: number,
    private readonly cost: () => void = () => {},
  ) {}
  prepare(): void {}
  async open(): Promise<void> {}
  decode(_task: Task, asked: ModelPrompt): Promise<Answer> {
    this.asked.push(asked.pointCoords[0][0]);
    return new Promise((resolve, reject) => {
      const done = (error?: Error): void => {
        this.cost();
        if (error) reject(error);
        else resolve({ lowResMasks: new Float32Array(), predictedIou: [this.mark] });
      };
      if (this.isAutomatic) done();
      else this.waiting.push(done);
    });
  }
}

test("hovers coalesce: one on its way, one waiting, and a click goes first", async () => {
  const server = new Manual(1);
  const decoder = new Decoder({ page: new Manual(0), server }, "server");
  decoder.open(TASK);
  const hovers = [1, 2, 3].map((x) => decoder.hover(prompt(x)));
  await settled();
  expect(server.asked).toEqual([1]);
  expect(await hovers[1]).toBeNull();
  const click = decoder.ask(prompt(9));
  expect(await hovers[2]).toBeNull();
  server.waiting[0]();
  expect((await hovers[0])?.predictedIou).toEqual([1]);
  await settled();
  expect(server.asked).toEqual([1, 9]);
  server.waiting[1]();
  expect((await click).predictedIou).toEqual([1]);
});

test.each([
  [100, 40, "server"],
  [40, 100, "page"],
] as const)("with the page at %d ms and the server at %d ms, the %s answers", async (page, server, faster) => {
  let now = 0;
  const backends = { page: new Manual(0, () => (now += page)), server: new Manual(1, () => (now += server)) };
  backends.page.isAutomatic = backends.server.isAutomatic = true;
  const decoder = new Decoder(backends, null, () => now);
  decoder.open(TASK);
  await settled();
  expect(decoder.status).toEqual({ using: faster, milliseconds: { page, server } });
  expect((await decoder.ask(prompt(1))).predictedIou).toEqual([faster === "page" ? 0 : 1]);
});

test("until the page's decoder is ready the server answers, and when it never is", async () => {
  const page = new Manual(0);
  page.open = () => Promise.reject(new Error("no wasm"));
  const server = new Manual(1);
  server.isAutomatic = true;
  const decoder = new Decoder({ page, server });
  decoder.open(TASK);
  expect((await decoder.ask(prompt(1))).predictedIou).toEqual([1]);
  expect(decoder.status.using).toBe("server");
});

test("where the server fails and the page's decoder never comes, those that wait are told", async () => {
  vi.useFakeTimers();
  const [page, server] = [new Manual(0), new Manual(1)];
  page.open = () => new Promise(() => {});
  server.decode = () => Promise.reject(new Error("away"));
  const decoder = new Decoder({ page, server });
  decoder.open(TASK);
  const asked = [decoder.ask(prompt(1)), decoder.ask(prompt(2))].map((answer) => expect(answer).rejects.toThrow("away"));
  await vi.advanceTimersByTimeAsync(20_000);
  await Promise.all(asked);
  vi.useRealTimers();
});

test("when the one in use fails, the other answers", async () => {
  const [page, server] = [new Manual(0), new Manual(1)];
  page.isAutomatic = server.isAutomatic = true;
  let isServerUp = false;
  server.decode = () => (isServerUp ? Promise.resolve({ lowResMasks: new Float32Array(), predictedIou: [1] }) : Promise.reject(new Error("away")));
  const decoder = new Decoder({ page, server });
  decoder.open(TASK);
  expect((await decoder.ask(prompt(1))).predictedIou).toEqual([0]); // not measured yet: the server was asked first
  await settled();
  expect(decoder.status.using).toBe("page");
  isServerUp = true;
  page.decode = () => Promise.reject(new Error("out of memory"));
  expect((await decoder.ask(prompt(1))).predictedIou).toEqual([1]);
  expect(decoder.status.using).toBe("server");
});
