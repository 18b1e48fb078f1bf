"""Does the engine do what it is for? Its whole loop on a domain the model has never seen.

    python -m benchmarks.loop --annotations nuclei/instances.json --out runs/loop --seeds 0 1 2

From the shipped checkpoint: rounds of stage one, then of stage two, then one of stage three, with
a retraining of the same number of steps after each (SAM 2's protocol). Every seed is a run of its
own in `OUT/seed-N`, resumed when the same command is given again. Rounds have different images,
some easier than others; so the first checkpoint also helps to annotate all those of stage one, in
the run `OUT/untrained`.

Printed per seed: annotator seconds per mask, and of the same images untrained; masks per image;
the share of masks that was prefilled; how many of the masks that the model made alone are right;
held-out mIoU after one click. Over all seeds: what the loop is to reach, as mean and spread.
`OUT/loop.png` draws it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from engine.config import EngineConfig, changed, parse_config
from engine.ground_truth import GroundTruth, resize_mask
from engine.machines import LocalMachines
from engine.manifest import RoundManifest, load_manifest
from engine.progress import Progress
from engine.rounds import load_outcome, load_start, run_rounds
from engine.shards import read_records
from engine.store import Store, open_store
from stages.records import Source, StageName
from stages.rle import decode_rle, encode_rle, rle_iou

# Thresholds were chosen after one retraining: three quarters of the masks that pass have an IoU of
# 0.5 or more with a nucleus (docs/log.md).
CONFIG = """
name: loop
checkpoint: sa-tiny
corpus: {held_out_fraction: 0.2}
work_size: {max_short_side: 480}
images_per_shard: 4
# On objects of 20 pixels two people hardly agree better than that.
simulated_annotator: {max_objects: 20, target_iou: 0.8}
fully_automatic:
  points_per_side: 20
  crop_n_layers: 0
  filters: &filters
    pred_iou_thresh: 0.5
    stability_score_thresh: 0.7
    box_nms_thresh: 0.5
    min_mask_region_area: 50
semi_automatic: {filters: *filters}
retraining:
  mix: {scale_jitter: [0.7, 1.6]}
  training:
    batch_images: 4
    masks_per_image: 12
    learning_rate: 3.0e-4
    warmup_steps: 10
    layer_decay: 0.9
    drop_path: 0.0
    num_corrections: 0
    num_repeats: 0
    iou_loss_weight: 4.0
    max_grad_norm: 1.0
    precision: bf16
  detector_training: {batch_images: 8}
  save_every_steps: 20
evaluation: {max_images: 20, max_masks_per_image: 10}
execution: {train_threads: 1}
"""


MIN_IOU = 0.5


@dataclass(frozen=True)
class Point:
    """What one round came to; the first is the checkpoint that the run began with."""

    name: str
    miou: float
    seconds_per_mask: float = np.nan
    untrained_seconds: float = np.nan
    """Of the same images with the first checkpoint."""
    masks_per_image: float = np.nan
    prefilled: float = np.nan
    right: float = np.nan
    """Share of the masks that the model made alone whose IoU with some object is at least 0.5."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, help="COCO-style JSON beside `images/`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--rounds", type=int, nargs=3, default=[6, 1, 1], help="of every stage")
    parser.add_argument("--images", type=int, default=12, help="of a round")
    parser.add_argument("--steps", type=int, default=80, help="of a retraining")
    parser.add_argument("--detector-steps", type=int, default=150)
    parser.add_argument("--snap", action="store_true", help="answer annotators in superpixels")
    parser.add_argument("--promote", choices=["always", "if_better"], default="always")
    options = parser.parse_args(arguments)
    progress, machines = Progress(Console(stderr=True)), LocalMachines()
    untrained = open_store(str(options.out / "untrained"))
    run_rounds(untrained, untrained_config(options), progress, machines)
    runs = []
    for seed in options.seeds:
        config = loop_config(options, seed)
        store = open_store(str(options.out / f"seed-{seed}"))
        run_rounds(store, config, progress, machines)
        runs.append(points(store, config, untrained))
        print_points(seed, runs[-1])
    print_summary(runs)
    loop_figure(options.seeds, runs).savefig(options.out / "loop.png", dpi=90)


def loop_config(options: argparse.Namespace, seed: int) -> EngineConfig:
    fields = yaml.safe_load(CONFIG)
    names = [stage for stage, n in zip(StageName, options.rounds, strict=True) for _ in range(n)]
    common = {"source": "domain", "images": options.images, "promote": options.promote}
    fields |= {
        "seed": seed,
        "checkpoint": options.checkpoint,
        "snap": options.snap,
        "sources": [{"kind": "coco", "name": "domain", "annotations": options.annotations}],
        "rounds": [{"stage": name.value, **common} for name in names],
    }
    decays = [round(0.7 * options.steps), round(0.9 * options.steps)]
    fields["retraining"]["training"] |= {"steps": options.steps, "lr_decay_steps": decays}
    fields["retraining"]["detector_training"]["steps"] = options.detector_steps
    return parse_config(yaml.safe_dump(fields), "loop")


def untrained_config(options: argparse.Namespace) -> EngineConfig:
    """The rounds of stage one over the same images, in which nothing is learnt; for all seeds."""
    config = loop_config(options, seed=0)
    rounds = [r for r in config.rounds if r.stage is StageName.ASSISTED_MANUAL]
    return changed(config, {"rounds": [{**r.model_dump(), "retrain": False} for r in rounds]})


def points(store: Store, config: EngineConfig, untrained: Store) -> list[Point]:
    start = load_start(store)
    assert start is not None
    assert start.evaluation is not None
    found = [Point("start", start.evaluation.miou_1_click)]
    truth = GroundTruth(store)
    for index, round_config in enumerate(config.rounds):
        outcome = load_outcome(store, config.round_folder(index))
        assert outcome is not None
        assert outcome.evaluation is not None
        manifest = load_manifest(store, config.round_folder(index))
        stats = manifest.stats
        by_people = round_config.stage is not StageName.FULLY_AUTOMATIC
        control = (
            load_manifest(untrained, config.round_folder(index)).stats.seconds_per_mask
            if round_config.stage is StageName.ASSISTED_MANUAL
            else np.nan
        )
        found.append(
            Point(
                f"{index} {round_config.stage.value}",
                outcome.evaluation.miou_1_click,
                stats.seconds_per_mask if by_people else np.nan,
                control,
                stats.mean_masks_per_image,
                stats.masks.get(Source.PREFILLED, 0) / max(stats.num_masks, 1),
                right_share(store, manifest, truth),
            )
        )
    return found


def right_share(store: Store, manifest: RoundManifest, truth: GroundTruth) -> float:
    best: list[float] = []
    for shard in manifest.shards:
        for record in read_records(store, shard.path):
            size_hw = record.height, record.width
            objects = [
                encode_rle(resize_mask(decode_rle(rle), size_hw))
                for rle in truth.masks(record.image_id)
            ]
            alone = [
                mask.segmentation for mask in record.masks if mask.source is not Source.ANNOTATED
            ]
            best += list(rle_iou(alone, objects).max(axis=1, initial=0))
    return float(np.mean(np.array(best) >= MIN_IOU)) if best else np.nan


def print_points(seed: int, found: Sequence[Point]) -> None:
    print(
        f"seed {seed}: seconds a mask | untrained | masks an image | prefilled | right | "
        "held-out mIoU, 1 click"
    )
    for point in found:
        print(
            f"{point.name:20} {point.seconds_per_mask:8.1f} {point.untrained_seconds:8.1f} "
            f"{point.masks_per_image:8.1f} {point.prefilled:8.2f} {point.right:8.2f} "
            f"{point.miou:8.3f}"
        )
    sys.stdout.flush()


def print_summary(runs: Sequence[Sequence[Point]]) -> None:
    rows: dict[str, list[float]] = {}
    for found in runs:
        first = [point for point in found if "assisted" in point.name]
        second = [point for point in found if "semi" in point.name]
        gained = found[-1].miou - found[0].miou
        rows.setdefault("mIoU after 1 click, gained (to reach 0.15)", []).append(gained)
        if len(first) > 1:
            saved = 1 - first[-1].seconds_per_mask / first[0].seconds_per_mask
            rows.setdefault("seconds a mask, saved in stage one (0.40)", []).append(saved)
            alike = 1 - first[-1].seconds_per_mask / first[-1].untrained_seconds
            rows.setdefault("the same, over the last round's own images", []).append(alike)
        if second:
            share = float(np.mean([point.prefilled for point in second]))
            rows.setdefault("prefilled share of stage two (0.50)", []).append(share)
            right = float(np.mean([point.right for point in second]))
            rows.setdefault("of the prefilled, with an IoU of 0.5 or more", []).append(right)
    for name, values in rows.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:45} mean {np.mean(values):.3f}, {spread} over {len(values)} seeds")


def loop_figure(seeds: Sequence[int], runs: Sequence[Sequence[Point]]) -> Figure:
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    titles = ("annotator seconds a mask", "masks an image", "held-out mIoU, 1 click")
    fields = ("seconds_per_mask", "masks_per_image", "miou")
    for axes, title, field in zip(panels, titles, fields, strict=True):
        for seed, found in zip(seeds, runs, strict=True):
            values = [getattr(point, field) for point in found]
            axes.plot(range(len(found)), values, "o-", label=f"seed {seed}")
        if field == "seconds_per_mask":
            values = [point.untrained_seconds for point in runs[0]]
            axes.plot(range(len(values)), values, "o--", color="grey", label="never retrained")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0)
        labels = [point.name.replace(" ", "\n").replace("_", "\n") for point in runs[0]]
        axes.set_xticks(range(len(labels)), labels, fontsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
