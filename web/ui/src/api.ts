/** The annotation server's interface, typed. */

import { base64ToBytes, bytesToBase64, floatsToHalves, halvesToFloats } from "./half";
import type { DashboardFigures } from "./dashboard_figures";
import type { Box } from "./mask";
import type { Answer, ModelPrompt, Near } from "./prompt";
import type { Rle } from "./rle";
import { type Superpixels, superpixelsOf } from "./snapped_upscale";

/** `review`: of what people handed in; `audit`: of automatic masks. */
export type TaskKind = "annotate" | "review" | "audit";
export type Verdict = "good" | "redo" | "reject";

export interface Me {
  name: string;
  role: "annotator" | "reviewer" | "manager";
  /** Of the tasks that this round has. */
  kinds: readonly TaskKind[];
  run: string;
  /** Whatever is kept in a browser is kept under it: other runs may have the same name. */
  run_id: string;
  round: number;
  stage: string;
  checkpoint: string;
}

export interface Interaction {
  kind: "point" | "box" | "brush";
  coords: number[];
  label: number;
  output: number | null;
  seconds: number;
  predicted_iou: number | null;
  answer: Rle;
  stroke: Rle | null;
  /** Whether the answer was laid on superpixels, and whether there was a second look; null after a brush. */
  snapped: boolean | null;
  zoomed_in: boolean | null;
}

export interface MaskPayload {
  segmentation: Rle;
  predicted_iou: number;
  stability_score: number;
  seconds: number;
  interactions: Interaction[];
}

export interface Task {
  task_id: number | string;
  kind: TaskKind;
  /** Of the reviewer who sent the image back; mostly empty. */
  note: string;
  lease: string;
  expires_in: number;
  /** Another number than when this annotator last had it: somebody else has, meanwhile. */
  hands: number;
  image_id: number | string;
  file_name: string;
  width: number;
  height: number;
  stage: "assisted_manual" | "semi_automatic" | "fully_automatic";
  max_mask_seconds: number;
  /** Small objects are looked at twice. */
  zoom_in: boolean;
  /** Masks are made of superpixels. */
  snap: boolean;
  image_size: number;
  embedding_shape: [number, number, number];
  checkpoint: string;
  prefilled: { id: number | string; segmentation: Rle }[];
  flagged: (number | string)[];
  masks: { mask_id: string; mask: MaskPayload; base: Rle | null }[];
}

export interface Progress {
  open: number;
  leased: number;
  submitted: number;
  given_up: number;
  /** Images that wait for a reviewer. */
  reviews_left: number;
  masks: number;
  /** 0 without masks. */
  seconds_per_mask: number;
}

/** The server said no. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    detail: string,
  ) {
    super(detail);
  }
}

/** The server was not reached, or could not answer; the same request may succeed later. */
export class Unreached extends Error {}

/** A silent server is not waited for any longer; an image, or all masks of one, may come over a slow line. */
const ANSWER_MILLISECONDS = 30_000;
const LARGE_MILLISECONDS = 300_000;
const LARGE_ANSWERS: readonly string[] = ["/api/images/", "/api/tasks/claim"];
/** Of the slowest line that is waited for, up as well. */
const BYTES_PER_MILLISECOND = 25;

interface Reply {
  status: number;
  content: Blob;
}

export class Api {
  /** Whose page this is: when somebody else signs in with the same browser, nothing is done in their name. */
  account: string | null = null;
  /** Called whenever the server no longer knows who this is. */
  onSignedOut: () => void = () => {};

  async login(token: string): Promise<void> {
    await this.send("POST", "/api/login", { token });
  }

  async logout(): Promise<void> {
    await this.send("POST", "/api/logout", {});
  }

  async me(): Promise<Me> {
    return json(await this.send("GET", "/api/me"));
  }

  async progress(kind: TaskKind): Promise<Progress> {
    return json(await this.send("GET", `/api/progress?kind=${kind}`));
  }

  /**
   * Null when there is nothing to do now. `holding`: what living tabs of this browser work on.
   * `ahead`: for later; there is none when few are left.
   */
  async claim(kind: TaskKind, holding: number[] | null, ahead: boolean): Promise<Task | null> {
    const reply = await this.send("POST", "/api/tasks/claim", { kind, holding, ahead });
    return reply.status === 204 ? null : json(reply);
  }

  /** Seconds until the lease ends. */
  async renew(task: Task): Promise<number> {
    const reply = await this.send("POST", `${taskPath(task.task_id)}/renew`, { lease: task.lease });
    return (await json<{ expires_in: number }>(reply)).expires_in;
  }

  async saveMask(taskId: Task["task_id"], lease: string, maskId: string, mask: MaskPayload): Promise<void> {
    await this.send("PUT", `${taskPath(taskId)}/masks/${encodeURIComponent(maskId)}`, { lease, mask });
  }

  async deleteMask(taskId: Task["task_id"], lease: string, maskId: string): Promise<void> {
    await this.send("DELETE", `${taskPath(taskId)}/masks/${encodeURIComponent(maskId)}`, { lease });
  }

  async flag(taskId: Task["task_id"], lease: string, prefilledId: string, flagged: boolean): Promise<void> {
    await this.send("PUT", `${taskPath(taskId)}/flags/${encodeURIComponent(prefilledId)}`, { lease, flagged });
  }

  /** This and the three below are sent to their end even while the page goes away. */
  async submit(task: Task, seconds: number): Promise<void> {
    await this.send("POST", `${taskPath(task.task_id)}/submit`, { lease: task.lease, seconds }, true);
  }

  async skip(task: Task, seconds: number, reason: string): Promise<void> {
    await this.send("POST", `${taskPath(task.task_id)}/skip`, { lease: task.lease, seconds, reason }, true);
  }

  async review(task: Task, seconds: number, verdict: Verdict, note: string): Promise<void> {
    const body = { lease: task.lease, seconds, verdict, note };
    await this.send("POST", `${taskPath(task.task_id)}/review`, body, true);
  }

  async release(task: Task): Promise<void> {
    await this.send("POST", `${taskPath(task.task_id)}/release`, { lease: task.lease }, true);
  }

  async dashboard(): Promise<DashboardFigures> {
    return json(await this.send("GET", "/api/dashboard"));
  }

  async image(imageId: Task["image_id"]): Promise<Blob> {
    return (await this.send("GET", `/api/images/${encodeURIComponent(imageId)}`)).content;
  }

  async decode(imageId: Task["image_id"], prompt: ModelPrompt): Promise<Answer> {
    const reply = await this.send("POST", "/api/decode", question(imageId, prompt));
    const { low_res_masks, predicted_iou } = await json<{ low_res_masks: string; predicted_iou: number[] }>(reply);
    return { lowResMasks: logitsOf(low_res_masks), predictedIou: predicted_iou };
  }

  /** `prompt`: its points in the crop's input frame, its mask input in the whole image's. */
  async zoomIn(imageId: Task["image_id"], crop: Box, prompt: ModelPrompt): Promise<Omit<Near, "superpixels">> {
    const { x0, y0, x1, y1 } = crop;
    const body = { ...question(imageId, prompt), crop_xyxy: [x0, y0, x1, y1] };
    const reply = await json<{ low_res_masks: string; predicted_iou: number[]; carried: string }>(
      await this.send("POST", "/api/zoom-in", body),
    );
    return {
      crop,
      lowResMasks: logitsOf(reply.low_res_masks),
      predictedIou: reply.predicted_iou,
      carried: logitsOf(reply.carried),
    };
  }

  /** Of the image, or of a crop of it. */
  async superpixels(imageId: Task["image_id"], crop: Box | null = null): Promise<Superpixels> {
    const ends = crop ? [crop.x0, crop.y0, crop.x1, crop.y1] : [];
    const which = ends.length ? `?${ends.map((end) => `crop_xyxy=${end}`).join("&")}` : "";
    const reply = await this.send("GET", `/api/superpixels/${encodeURIComponent(imageId)}${which}`);
    return superpixelsOf(await reply.content.arrayBuffer());
  }

  /** The whole answer: a line that breaks in the middle of it is a server not reached. */
  private async send(method: string, path: string, body?: unknown, keepalive = false): Promise<Reply> {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const isLarge = LARGE_ANSWERS.some((start) => path.startsWith(start));
    const milliseconds = (isLarge ? LARGE_MILLISECONDS : ANSWER_MILLISECONDS) + Math.ceil((text?.length ?? 0) / BYTES_PER_MILLISECOND);
    const headers: Record<string, string> = {};
    if (method !== "GET") Object.assign(headers, { "X-SA-Engine": "1", "Content-Type": "application/json" });
    if (this.account !== null && path !== "/api/me") headers["X-SA-Engine-Account"] = encodeURIComponent(this.account);
    let response: Response;
    let content: Blob;
    try {
      response = await fetch(path, {
        method,
        keepalive,
        credentials: "same-origin",
        headers,
        body: text,
        signal: AbortSignal.timeout(milliseconds),
      });
      content = await response.blob();
    } catch {
      throw new Unreached("the server cannot be reached");
    }
    const { ok, status } = response;
    if (ok) return { status, content };
    const detail = await detailOf({ status, content });
    if (status >= 500 || status === 408 || status === 429) throw new Unreached(detail);
    if (status === 401 && path !== "/api/login") this.onSignedOut();
    throw new Refused(status, detail);
  }
}

function question(imageId: Task["image_id"], prompt: ModelPrompt): object {
  return {
    image_id: imageId,
    point_coords: prompt.pointCoords,
    point_labels: prompt.pointLabels,
    mask_input: prompt.maskInput && bytesToBase64(new Uint8Array(floatsToHalves(prompt.maskInput).buffer)),
  };
}

function logitsOf(encoded: string): Float32Array {
  return halvesToFloats(new Uint16Array(base64ToBytes(encoded).buffer));
}

function taskPath(taskId: Task["task_id"]): string {
  return `/api/tasks/${encodeURIComponent(taskId)}`;
}

async function json<Value>({ content }: Reply): Promise<Value> {
  return JSON.parse(await content.text());
}

async function detailOf(reply: Reply): Promise<string> {
  try {
    const { detail } = await json<{ detail: unknown }>(reply);
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return `the server answered ${reply.status}`;
  }
}
