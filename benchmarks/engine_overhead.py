"""What the engine costs: seconds per shard with a model that does nothing.

    python -m benchmarks.engine_overhead --shards 8 --images-per-shard 128 --masks 0 100

The same images get the same made-up masks three times: in a plain loop that reads an image and
adds a row to a Parquet file, without statistics, checks or commit; by the engine in one process; by
the engine on one Ray actor, which is what each of many costs. The engine's time runs from freezing
the plan to the sealed manifest. Scanning the corpus and starting Ray and its actor come before it
and are not counted.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image as Picture

from benchmarks.idle_stage import SIZE_HW, IdleUnit, Prepare, made_up_masks
from engine.config import ExecutionConfig
from engine.context import WorkerSpec
from engine.corpus import Corpus, CorpusConfig, CorpusRow, build_corpus
from engine.executor import Executor, LocalExecutor, run_all
from engine.layout import CONFIG, round_folder, shard_path, shards_folder
from engine.manifest import PlanHeader, RoundPlan, freeze_plan, seal
from engine.production import Patience, make_shards
from engine.ray_machines import RayMachines
from engine.shards import ROWS_PER_GROUP, SCHEMA, ShardHeader, read_columns
from engine.sources import FolderSource
from engine.store import open_store
from stages.fully_automatic import FullyAutomaticConfig
from stages.records import MaskRecord, StageName

HEADER = PlanHeader(round=0, stage=StageName.FULLY_AUTOMATIC, config_sha256="", checkpoint="none")
ROUND = round_folder(HEADER.round, HEADER.stage)


@dataclass(frozen=True)
class Work:
    corpus: Corpus
    images_per_shard: int
    num_masks: int

    @cached_property
    def plan(self) -> RoundPlan:
        return RoundPlan(HEADER, self.corpus.select(), self.images_per_shard)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--images-per-shard", type=int, default=128)
    parser.add_argument("--masks", type=int, nargs="+", default=[0, 100], help="of every image")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    machines = RayMachines(ExecutionConfig(workers=1))
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        corpus = record_photographs(Path(folder), options.shards * options.images_per_shard)
        for num_masks in options.masks:
            work = Work(corpus, options.images_per_shard, num_masks)
            measure(work, Path(folder) / f"{num_masks}-masks", machines)


def measure(work: Work, folder: Path, machines: RayMachines) -> None:
    """Print a line for each way to do the work; all must have written the same rows."""
    plain, local, ray = folder / "plain", folder / "local", folder / "ray"
    for run in (local, ray):
        open_store(str(run)).publish(CONFIG, b"")  # what a worker looks for before it starts
    seconds = {
        plain: plain_loop(work, plain),
        local: by_engine(work, local, LocalExecutor(WorkerSpec(str(local), checkpoint=""))),
        ray: by_engine(work, ray, machines.executor(WorkerSpec(str(ray), checkpoint=""))),
    }
    for run in seconds:
        assert rows_of(work, run).equals(rows_of(work, plain)), f"{run} differs from the plain loop"
        figures = {
            "how": run.name,
            "masks_per_image": work.num_masks,
            "seconds_per_shard": round(seconds[run] / work.plan.num_shards, 3),
            "milliseconds_per_image": round(1000 * seconds[run] / len(work.corpus), 2),
            "ratio_to_plain": round(seconds[run] / seconds[plain], 2),
        }
        print(json.dumps(figures), flush=True)


def plain_loop(work: Work, run: Path) -> float:
    """What one would write without an engine; the masks are at hand as a model would give them."""
    masks = made_up_masks(work.num_masks)
    (run / shards_folder(ROUND)).mkdir(parents=True)
    started = time.monotonic()
    for shard in range(work.plan.num_shards):
        rows = work.corpus.rows(work.plan.shard(shard).tolist())
        table = pa.Table.from_pylist([plain_record(row, masks) for row in rows], schema=SCHEMA)
        path = run / shard_path(shards_folder(ROUND), shard)
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd")
    return time.monotonic() - started


def plain_record(row: CorpusRow, masks: Sequence[MaskRecord]) -> dict[str, Any]:
    with Picture.open(row.uri) as file:
        height, width, _ = np.asarray(file.convert("RGB")).shape
    return {
        **row.model_dump(include={"image_id", "file_name", "uri", "sha256"}),
        "width": width,
        "height": height,
        "stage": HEADER.stage.value,
        "round": HEADER.round,
        "status": "ok",
        "error": "",
        "masks": [mask.model_dump() for mask in masks],
        "drops": {},
        "annotator_seconds": 0.0,
        "worker_seconds": 0.0,
    }


def by_engine(work: Work, run: Path, executor: Executor) -> float:
    store, shards = open_store(str(run)), shards_folder(ROUND)
    list(run_all(executor, [Prepare(work.num_masks)]))
    started = time.monotonic()
    plan = freeze_plan(store, ROUND, work.plan)
    units = (
        IdleUnit(
            header=ShardHeader(shard=shard, **HEADER.model_dump()),
            images=tuple(work.corpus.rows(plan.shard(shard).tolist())),
            shards=shards,
            stage_config=FullyAutomaticConfig(),
            seed=0,
            num_masks=work.num_masks,
        )
        for shard in range(plan.num_shards)
    )
    make_shards(executor, store, units, Patience(1, 0), lambda shard: None)
    seal(store, ROUND, plan)
    seconds = time.monotonic() - started
    executor.close()
    return seconds


def rows_of(work: Work, run: Path) -> pa.Table:
    """All rows of a run, without the one column that is a clock's."""
    names = [name for name in SCHEMA.names if name != "worker_seconds"]
    store, shards = open_store(str(run)), shards_folder(ROUND)
    paths = [shard_path(shards, shard) for shard in range(work.plan.num_shards)]
    return pa.concat_tables(read_columns(store, path, names) for path in paths)


def record_photographs(folder: Path, count: int) -> Corpus:
    """A corpus of blurred noise as JPEG files, no two the same."""
    images = folder / "images"
    images.mkdir()
    height, width = SIZE_HW
    for number in range(count):
        colours = np.random.default_rng(number).integers(256, size=(12, 16, 3), dtype=np.uint8)
        Picture.fromarray(colours).resize((width, height)).save(images / f"{number:06d}.jpg")
    source = FolderSource(name="photographs", path=str(images))
    config = CorpusConfig(held_out_fraction=0, verify="header")
    return build_corpus(open_store(str(folder / "corpus")), [source], config)


if __name__ == "__main__":
    main()
