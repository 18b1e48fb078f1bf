/** What the server tells a manager: web/dashboard.py, typed. */

export interface TaskCounts {
  open: number;
  leased: number;
  submitted: number;
  given_up: number;
  /** Left out, as the round had its masks. */
  withdrawn: number;
}

export interface Effort {
  images: number;
  skipped: number;
  masks: number;
  masks_per_image: number;
  seconds_per_mask: number;
  clicks_per_mask: number;
  brush_share: number;
}

export interface Agreement {
  good: number;
  redo: number;
  reject: number;
  compared: number;
  deleted: number;
  added: number;
  mean_iou: number;
  share_above_90: number;
  share_above_75: number;
}

export interface Evaluation {
  num_images: number;
  num_masks: number;
  miou_1_click: number;
  miou_3_clicks: number;
  miou_5_clicks: number;
}

export interface Outcome {
  /** Path of the checkpoint that goes on. */
  checkpoint: string;
  trained: string | null;
  evaluation: Evaluation | null;
  trained_evaluation: Evaluation | null;
}

export interface RoundFigures {
  index: number;
  stage: "assisted_manual" | "semi_automatic" | "fully_automatic";
  /** Empty where nobody annotates. */
  annotator: string;
  state: "waiting" | "working" | "sealed" | "done";
  images: number;
  tasks: TaskCounts;
  reviews: TaskCounts;
  audit: { tasks: TaskCounts; agreement: Agreement };
  effort: Effort;
  over_time: (Effort & { began: number; ended: number })[];
  agreement: Agreement;
  annotators: { name: string; effort: Effort; agreement: Agreement; pictures: number[] }[];
  outcome: Outcome | null;
  detector: { num_objects: number; recall: number } | null;
  pictures: number[];
}

export interface DashboardFigures {
  run: string;
  start: Outcome | null;
  rounds: RoundFigures[];
}

/** Where the paper's stages began and ended. */
export const PAPER = {
  assisted_manual: { seconds: [34, 14], masks: [20, 44] },
  semi_automatic: { seconds: [34, 34], masks: [44, 72] },
  fully_automatic: { seconds: null, masks: null },
} as const;

/** Number and stage, as in the run's folder. */
export function roundName({ index, stage }: Pick<RoundFigures, "index" | "stage">): string {
  return `${index} ${stage.replace("_", " ")}`;
}

/** The one to show first: where people work now, or else the last one that began. */
export function currentRound(rounds: readonly RoundFigures[]): number {
  const working = rounds.findIndex(({ state }) => state === "working");
  if (working >= 0) return working;
  return Math.max(0, rounds.findLastIndex(({ state }) => state !== "waiting"));
}
