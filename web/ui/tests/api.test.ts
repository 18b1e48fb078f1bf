import { afterEach, expect, test, vi } from "vitest";
import { Api, Refused, Unreached } from "../src/api";

afterEach(() => vi.restoreAllMocks());

function answering(answer: (init: RequestInit) => Promise<Response>): Api {
  vi.spyOn(globalThis, "fetch").mockImplementation((_path, init) => answer(init ?? {}));
  return new Api();
}

/** A body of which the line lets only a part through. */
function broken(): Response {
  const parts = ["{", null];
  const body = new ReadableStream({
    pull(to) {
      const part = parts.shift();
      if (part) to.enqueue(new TextEncoder().encode(part));
      else to.error(new TypeError("network error"));
    },
  });
  return new Response(body);
}

test("an answer that breaks off in the middle may be asked for again", async () => {
  const api = answering(async () => broken());
  await expect(api.image(1)).rejects.toThrow(Unreached);
  await expect(api.me()).rejects.toThrow(Unreached);
  await expect(api.claim("annotate", null, false)).rejects.toThrow(Unreached);
});

test("a server that stays silent is given up", async () => {
  const patience = new AbortController();
  vi.spyOn(AbortSignal, "timeout").mockReturnValue(patience.signal);
  const api = answering(
    ({ signal }) =>
      new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason as Error))),
  );
  const asked = api.me();
  patience.abort();
  await expect(asked).rejects.toThrow(Unreached);
});

test("what the server refuses is told in its words, and waiting is for what it could not do", async () => {
  const api = answering(async () => Response.json({ detail: "size: expected 4 x 4" }, { status: 422 }));
  await expect(api.me()).rejects.toThrow(new Refused(422, "size: expected 4 x 4"));
  vi.mocked(fetch).mockImplementation(async () => new Response("bad gateway", { status: 502 }));
  await expect(api.me()).rejects.toThrow(new Unreached("the server answered 502"));
});

test("whoever is signed out is told, unless they are signing in", async () => {
  const api = answering(async () => Response.json({ detail: "no" }, { status: 401 }));
  api.onSignedOut = vi.fn();
  await expect(api.login("wrong")).rejects.toThrow(Refused);
  expect(api.onSignedOut).not.toHaveBeenCalled();
  await expect(api.me()).rejects.toThrow(Refused);
  expect(api.onSignedOut).toHaveBeenCalledOnce();
});

test("requests name whose page asks, but for the question who that is", async () => {
  const named: (string | null)[] = [];
  const api = answering(async ({ headers }) => {
    named.push(new Headers(headers).get("X-SA-Engine-Account"));
    return Response.json({});
  });
  await api.me();
  api.account = "Jürgen";
  await api.me();
  await api.progress("annotate");
  await api.claim("annotate", null, false);
  expect(named).toEqual([null, null, "J%C3%BCrgen", "J%C3%BCrgen"]);
});
