/**
 * The mask in the making: what the annotator does to it, in order, and what a click would give.
 *
 * Everything that waits for the model goes through one line (`inTurn`), so a click, an undo and an
 * accept take effect in the order they were made, however long the model takes.
 */

import type { Task } from "./api";
import type { Decoder } from "./decoder";
import type { AcceptedMask } from "./finished";
import type { Point } from "./geometry";
import { area, type Mask, strokeMask } from "./mask";
import { type Answer, toModel } from "./prompt";
import type { Size } from "./rle";
import { type Ask, MaskSession } from "./session";
import { type Superpixels, Upscales } from "./snapped_upscale";
import type { Voice } from "./voice";
import { type LookCloser, ZoomIn } from "./zoom_in";

/** What helps the model's answers. */
export interface Aids {
  lookCloser: LookCloser;
  /** Null where masks are not made of them. */
  superpixels: Superpixels | null;
  /** Whether the annotator wants masks made of superpixels. */
  wantsSnap(): boolean;
  wantSnap(wanted: boolean): void;
}

export class Drawing {
  session: MaskSession;
  /** Id of the accepted mask that is taken up again. */
  editing: string | null = null;
  /** Clicks that the model has not answered yet, pixels. */
  waitingClicks: readonly { x: number; y: number; label: number }[] = [];
  /** What a click at the mouse would give. */
  preview: Mask | null = null;
  /** Actions that wait for the model. */
  busy = 0;

  private readonly size: Size;
  private readonly upscales: Upscales;
  private readonly zoomIn: ZoomIn | null;
  private turn: Promise<void> = Promise.resolve();
  private untouched: readonly unknown[] = [];
  private hovered: { pixel: Point; answer: Answer | null } | null = null;
  /** How often the mask in the making was dropped, and with it what still waited for the model. */
  private drops = 0;

  /** `clock`: active seconds, of any origin. `isOpen`: whether the image may still be worked on. */
  constructor(
    private readonly task: Task,
    private readonly decoder: Pick<Decoder, "ask" | "hover" | "dropHover">,
    private readonly clock: () => number,
    private readonly isOpen: () => boolean,
    private readonly voice: Voice,
    private readonly aids: Aids,
  ) {
    this.size = { width: task.width, height: task.height };
    this.upscales = new Upscales(this.size, task.image_size, aids.superpixels);
    this.zoomIn = task.zoom_in ? new ZoomIn(this.size, aids.lookCloser) : null;
    this.session = this.emptySession();
    this.untouched = this.session.actions;
  }

  /** It was neither accepted nor dropped. */
  get isTouched(): boolean {
    const { untouched, session: { actions } } = this;
    return actions !== untouched && (actions.length > 0 || untouched.length > 0);
  }

  /** A new, empty mask; the tool stays armed, and clicks that wait for the model are the new mask's. */
  begin(): void {
    this.use(this.emptySession(), null);
    this.stopHover();
  }

  /** A new, empty mask; what still waits for the model is forgotten. */
  drop(): void {
    this.drops++;
    this.waitingClicks = [];
    this.begin();
  }

  /** Takes up an accepted mask where its log ends, unless that is dropped meanwhile. */
  async resume({ id, payload, base }: AcceptedMask): Promise<void> {
    const { drops } = this;
    this.stopHover();
    const empty = new MaskSession(id, this.upscales, this.aids.wantsSnap, this.ask, this.clock, payload.seconds);
    const session = await MaskSession.resume(payload, empty, base);
    if (drops !== this.drops) return;
    this.use(session, id);
    this.describe("Taken up again. ");
  }

  click(pixel: Point, label: number): void {
    if (!this.isOpen()) return;
    const waiting = { ...pixel, label };
    this.waitingClicks = [...this.waitingClicks, waiting];
    const answered = this.unlessDropped(async (session) => {
      const isKnown = label === 1 && session.isEmpty && samePixel(this.hovered?.pixel, pixel);
      await session.click(pixel, label, isKnown ? (this.hovered?.answer ?? null) : null);
      this.describe();
    });
    void answered.then(() => {
      this.waitingClicks = this.waitingClicks.filter((click) => click !== waiting);
      this.stopHover();
    });
  }

  dragBox(box: readonly number[]): void {
    if (!this.isOpen()) return;
    void this.unlessDropped(async (session) => {
      await session.dragBox(box);
      this.stopHover();
      this.describe();
    });
  }

  /** `points`: image places; `radius`: image pixels. */
  stroke(points: readonly Point[], radius: number, label: number): void {
    if (!this.isOpen()) return;
    const mask = strokeMask(points, radius, this.size);
    void this.unlessDropped(async (session) => {
      if (session.predictedIou === null) {
        this.voice.say("Click the object or draw a box around it first; strokes then correct the model's answer.");
      } else if (session.brush(mask, label)) {
        this.describe();
      }
    });
  }

  choose(output: number): void {
    void this.inTurn(async () => {
      if (this.session.choose(output)) this.describe();
      else this.voice.say("Whole, part and subpart are offered after a first click alone.");
    });
  }

  get canSnap(): boolean {
    return this.upscales.canSnap;
  }

  /** Whether the mask in the making is made of superpixels, or the next one will be. */
  get snaps(): boolean {
    return this.session.snapped ?? this.aids.wantsSnap();
  }

  /** Makes the mask in the making of superpixels, or no longer; and those after it. */
  toggleSnap(): void {
    void this.inTurn(async () => {
      if (!this.canSnap) return this.voice.say("This image has no superpixels: its masks have the model's own edges.");
      const snaps = !this.snaps;
      this.aids.wantSnap(snaps);
      this.stopHover();
      const edges = snaps ? "Edges are those of the image. " : "Edges are the model's own. ";
      if (this.session.redraw() || this.session.isEmpty) this.describe(edges);
      else this.voice.say(`From the next click on: ${edges}`);
    });
  }

  redo(): void {
    void this.inTurn(async () => {
      if (this.session.redo()) this.describe("Done again. ");
    });
  }

  /** What a first click at this pixel would give; null: the mouse is elsewhere, or does something else. */
  hover(pixel: Point | null): void {
    const session = this.session;
    if (!pixel || !this.isOpen() || this.busy || !session.isEmpty) {
      if (this.hovered) this.stopHover();
      return;
    }
    if (samePixel(this.hovered?.pixel, pixel)) return;
    const hovered = (this.hovered = { pixel, answer: null as Answer | null });
    const prompt = session.promptWith("point", [pixel.x, pixel.y], 1);
    void this.decoder.hover(toModel(prompt, this.size, this.task.image_size)).then((answer) => {
      if (!answer || session !== this.session || !session.isEmpty || !this.hovered) return;
      hovered.answer = answer;
      this.preview = session.preview(answer, pixel);
      this.voice.changed();
    });
  }

  stopHover(): void {
    this.hovered = null;
    this.preview = null;
    this.decoder.dropHover();
    this.voice.changed();
  }

  /** Once everything before it is done, unless the image is handed in meanwhile. */
  inTurn(action: () => Promise<void>): Promise<void> {
    this.busy++;
    this.voice.changed();
    this.turn = this.turn
      .then(() => (this.isOpen() ? action() : undefined))
      .catch((error) => this.voice.say(`No answer from the model; try again. (${(error as Error).message})`, true))
      .finally(() => {
        this.busy--;
        this.voice.changed();
      });
    return this.turn;
  }

  /** In turn, to the mask that is in the making then. */
  private unlessDropped(action: (session: MaskSession) => Promise<void>): Promise<void> {
    const { drops } = this;
    return this.inTurn(async () => {
      if (drops === this.drops) await action(this.session);
    });
  }

  /** Tells the annotator what the mask is now. */
  describe(prefix = ""): void {
    const { session } = this;
    if (session.isEmpty) return this.voice.say(`${prefix}Click an object.`);
    const iou = session.predictedIou;
    const what = session.choices.length ? ` as ${["whole", "part", "subpart"][session.chosen]} (1 2 3)` : "";
    const sure = iou === null ? "" : `, predicted IoU ${iou.toFixed(2)}`;
    this.voice.say(`${prefix}Mask of ${area(session.mask)} pixels${what}${sure}.`);
  }

  private use(session: MaskSession, editing: string | null): void {
    this.session = session;
    this.untouched = session.actions;
    this.editing = editing;
  }

  private emptySession(): MaskSession {
    return new MaskSession(newId(), this.upscales, this.aids.wantsSnap, this.ask, this.clock);
  }

  private readonly ask: Ask = async (prompt, { snaps, zoomsIn, known }) => {
    const far = known ?? (await this.decoder.ask(toModel(prompt, this.size, this.task.image_size)));
    if (!this.zoomIn || zoomsIn === false) return far;
    return this.zoomIn.look(prompt, far, this.upscales.of(snaps), zoomsIn === true);
  };
}

function samePixel(a: Point | null | undefined, b: Point): boolean {
  return a?.x === b.x && a.y === b.y;
}

/** 32 hex digits. */
function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
