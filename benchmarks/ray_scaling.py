"""Automatic masks on Ray beside a plain loop, and two workers beside one.

    python -m benchmarks.ray_scaling --images photos/cars.jpg --copies 12

The same images, a shard each, are worked on by a plain loop in one process, by the engine with one
worker of one thread, and by the engine with two. Workers have started and hold the model before the
clock starts; it stops when the round is sealed.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image as Picture

from engine.config import ExecutionConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus, CorpusConfig, CorpusRow, build_corpus
from engine.executor import run_all
from engine.layout import CONFIG, round_folder, shard_path, shards_folder
from engine.manifest import PlanHeader, RoundPlan, freeze_plan, seal
from engine.production import Patience, make_shards
from engine.ray_machines import RayMachines
from engine.scenes import draw_scene
from engine.shards import ShardHeader, read_footer
from engine.sources import FolderSource
from engine.store import open_store
from engine.worker import ShardUnit
from model.checkpoint import load_checkpoint
from stages.base import Provenance
from stages.filters import FilterConfig
from stages.fully_automatic import FullyAutomatic, FullyAutomaticConfig
from stages.predictor import Image
from stages.records import StageName

HEADER = PlanHeader(round=0, stage=StageName.FULLY_AUTOMATIC, config_sha256="", checkpoint="")
ROUND = round_folder(HEADER.round, HEADER.stage)
PROVENANCE = Provenance(round=0, checkpoint="")
# Low thresholds, for a checkpoint that is unsure of itself.
STAGE = FullyAutomaticConfig(
    crop_n_layers=0,
    filters=FilterConfig(
        pred_iou_thresh=0.2,
        stability_score_thresh=0.8,
        stability_score_offset=0.2,
        box_nms_thresh=0.5,
    ),
)


@dataclass(frozen=True)
class WakeUp:
    """Done when a worker has started and has made the masks of one image."""

    row: CorpusRow
    config: FullyAutomaticConfig

    def run(self, context: WorkerContext) -> int:
        stage = FullyAutomatic(context.checkpoint.sam, self.config, PROVENANCE)
        stage.run(context.read_image(self.row), np.random.default_rng(0))
        return os.getpid()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="default: a drawn scene")
    parser.add_argument("--copies", type=int, default=12, help="of each, brighter and darker")
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--points", type=int, default=32, help="a side")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stage = STAGE.model_copy(update={"points_per_side": options.points})
    with TemporaryDirectory(prefix="sa-engine-") as name:
        folder = Path(name)
        corpus = copies(options.images, options.copies, folder)
        seconds, masks = plain_loop(corpus, options.checkpoint, stage)
        report("plain loop", 1, seconds, masks)
        plain = seconds
        for workers in (1, 2):
            before, run = seconds, folder / f"{workers}-workers"
            seconds, found = by_engine(corpus, options.checkpoint, stage, run, workers)
            assert found == masks, f"the engine made {found} masks, the plain loop {masks}"
            more = {"times_the_plain_loop": round(plain / seconds, 3)}
            if workers > 1:
                more["times_one_worker"] = round(before / seconds, 3)
            report("engine", workers, seconds, masks, **more)


def report(how: str, workers: int, seconds: float, masks: int, **more: float) -> None:
    line = {"how": how, "workers": workers, "seconds": round(seconds, 2), "masks": masks}
    print(json.dumps({**line, "masks_per_second": round(masks / seconds, 2), **more}), flush=True)


def plain_loop(corpus: Corpus, checkpoint: str, config: FullyAutomaticConfig) -> tuple[float, int]:
    stage = FullyAutomatic(load_checkpoint(checkpoint).sam.eval(), config, PROVENANCE)
    rows = corpus.rows(corpus.select())
    masks_of(stage, rows[0])  # what is done the first time only
    started = time.monotonic()
    masks = sum(masks_of(stage, row) for row in rows)
    return time.monotonic() - started, masks


def masks_of(stage: FullyAutomatic, row: CorpusRow) -> int:
    with Picture.open(row.uri) as file:
        pixels = np.asarray(file.convert("RGB"))
    return len(stage.run(Image(row.image_id, pixels), np.random.default_rng(0)).masks)


def by_engine(
    corpus: Corpus, checkpoint: str, config: FullyAutomaticConfig, run: Path, workers: int
) -> tuple[float, int]:
    store, shards = open_store(str(run)), shards_folder(ROUND)
    store.publish(CONFIG, b"")  # what a worker looks for before it starts
    spec = WorkerSpec(str(run), checkpoint)
    executor = RayMachines(ExecutionConfig(workers=workers)).executor(spec)
    try:
        awake: set[int] = set()
        while len(awake) < workers:
            wake_ups = [WakeUp(corpus.row(0), config)] * workers
            awake |= {outcome.result for outcome in run_all(executor, wake_ups)}
        started = time.monotonic()
        plan = freeze_plan(store, ROUND, RoundPlan(HEADER, corpus.select(), 1))
        units = (
            ShardUnit(
                header=ShardHeader(shard=shard, **HEADER.model_dump()),
                images=tuple(corpus.rows(plan.shard(shard).tolist())),
                shards=shards,
                stage_config=config,
                seed=0,
            )
            for shard in range(plan.num_shards)
        )
        make_shards(executor, store, units, Patience(1, 0), lambda shard: None)
        seal(store, ROUND, plan)
        seconds = time.monotonic() - started
    finally:
        executor.close()
    footers = (read_footer(store, shard_path(shards, i)) for i in range(plan.num_shards))
    return seconds, sum(footer.num_masks for footer in footers)


def copies(images: Sequence[Path], count: int, folder: Path) -> Corpus:
    """The images at several brightnesses: no two files the same, all of one size."""
    originals = [np.asarray(Picture.open(path).convert("RGB")) for path in images]
    originals = originals or [draw_scene(0, 0, (1500, 2250)).pixels]
    (folder / "images").mkdir()
    for number, gain in enumerate(np.linspace(0.8, 1.2, count)):
        for index, pixels in enumerate(originals):
            copy = Picture.fromarray((pixels * gain).clip(0, 255).astype(np.uint8))
            copy.save(folder / "images" / f"{index}-{number:03d}.jpg", quality=90)
    source = FolderSource(name="photographs", path=str(folder / "images"))
    config = CorpusConfig(held_out_fraction=0)
    return build_corpus(open_store(str(folder / "corpus")), [source], config)


if __name__ == "__main__":
    main()
