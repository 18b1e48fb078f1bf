"""Planning and resuming a run of many images: time and peak memory of each step.

    python -m benchmarks.planning --images 1000000

The scanned parts of a corpus are made up, and every shard is a copy of one real, empty shard: what
is measured is the engine's bookkeeping, not the reading of photographs or masks. Each step is what
the commands call, in a process of its own: one puts the corpus together, one plans, one goes on
where half of the shards exist, one seals, one finds all done, and two look at the status.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from benchmarks.process import Cost, cost_of
from engine import layout
from engine.config import EngineConfig, RoundConfig
from engine.context import WorkerSpec
from engine.corpus import CORPUS_SCHEMA, LISTING, LISTING_SCHEMA, Corpus, build_corpus
from engine.executor import Executor, Outcome, Unit
from engine.manifest import load_plan
from engine.progress import Progress
from engine.rounds import run_rounds
from engine.shards import ShardHeader, publish_shard
from engine.sources import FolderSource
from engine.status import run_status
from engine.store import Store, open_store
from engine.training import TrainingJob
from engine.worker import image_record
from model.checkpoint import Lineage, save_checkpoint
from model.sam import Sam, SamConfig
from model.tiny_vit import TinyViTConfig
from stages.base import StageOutput
from stages.records import ImageStatus, StageName

ROWS_PER_PART = 1000
SIDE = 1000
SOURCE = FolderSource(name="photographs", path="/photographs")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--images-per-shard", type=int, default=256)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        measure(Path(folder), options.images, options.images_per_shard)


def measure(folder: Path, num_images: int, images_per_shard: int) -> None:
    """Print a line for each step."""
    config, store = write_config(folder, images_per_shard), open_store(f"{folder}/run")
    write_scanned(store, num_images)
    _print("put the corpus together", cost_of(put_together, store.uri, config))
    _print("plan", cost_of(run_to_first_unit, store.uri, config))
    write_shards(store, config, share=0.5)
    _print("resume, half of the shards there", cost_of(run_to_first_unit, store.uri, config))
    _print("status, half of the shards there", cost_of(run_status, store))
    write_shards(store, config, share=1.0)
    _print("resume, all there, and seal", cost_of(run_to_end, store.uri, config))
    _print("resume, all done", cost_of(run_to_end, store.uri, config))
    _print("status, all done", cost_of(run_status, store))


def _print(step: str, cost: Cost) -> None:
    print(json.dumps({"step": step, **asdict(cost)}), flush=True)


def write_config(folder: Path, images_per_shard: int) -> EngineConfig:
    """One automatic round over everything, by a model of next to no weights."""
    encoder = TinyViTConfig(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
    sam = Sam(SamConfig(image_encoder=encoder, image_size=64, embed_dim=32))
    save_checkpoint(sam, folder / "small", Lineage())
    return EngineConfig(
        checkpoint=str(folder / "small"),
        sources=(FolderSource(name="photographs", path="/photographs"),),
        rounds=(RoundConfig(stage=StageName.FULLY_AUTOMATIC, source="photographs", retrain=False),),
        images_per_shard=images_per_shard,
    )


def write_scanned(store: Store, num_images: int) -> None:
    """What listing and scanning leave of so many photographs: the parts of a corpus."""
    starts = range(0, num_images, ROWS_PER_PART)
    parts = [scanned(range(start, min(start + ROWS_PER_PART, num_images))) for start in starts]
    for number, part in enumerate(parts):
        _publish_table(store, f"corpus/parts/{number:06d}.parquet", part)
    _publish_table(store, LISTING, pa.concat_tables(parts).select(LISTING_SCHEMA.names))


def _publish_table(store: Store, path: str, table: pa.Table) -> None:
    store.publish_written(
        path, lambda file: pq.write_table(table, file, row_group_size=ROWS_PER_PART)
    )


def scanned(numbers: range) -> pa.Table:
    names = [f"{number // 1000:06d}/photograph_{number:09d}.jpg" for number in numbers]
    columns: dict[str, Sequence[Any]] = {
        "image_id": range(len(names)),
        "source": [SOURCE.name] * len(names),
        "source_id": [""] * len(names),
        "uri": [f"{SOURCE.path}/{name}" for name in names],
        "file_name": names,
        "width": [SIDE] * len(names),
        "height": [SIDE] * len(names),
        "orientation": [1] * len(names),
        "size_bytes": [300_000] * len(names),
        "sha256": [sha256(name.encode()).hexdigest() for name in names],
        "split": ["train"] * len(names),
        "status": [ImageStatus.OK.value] * len(names),
        "reason": [""] * len(names),
    }
    return pa.table({name: pa.array(columns[name]) for name in columns}).cast(CORPUS_SCHEMA)


def put_together(uri: str, config: EngineConfig) -> None:
    build_corpus(open_store(uri), config.sources, config.corpus)


def write_shards(store: Store, config: EngineConfig, *, share: float) -> None:
    """Make this share of the planned shards exist, all of the same bytes: nobody looks at rows."""
    folder = config.round_folder(0)
    plan, shards = load_plan(store, folder), layout.shards_folder(folder)
    header = ShardHeader(
        stage=plan.header.stage,
        round=0,
        shard=0,
        checkpoint=plan.header.checkpoint,
        config_sha256=plan.header.config_sha256,
    )
    records = (
        image_record(
            row,
            plan.header.stage,
            0,
            size_hw=(SIDE, SIDE),
            output=StageOutput(masks=()),
            worker_seconds=0.0,
        )
        for row in Corpus(store).rows(plan.shard(0).tolist())
    )
    publish_shard(store, layout.shard_path(shards, 0), header, records)
    data = store.read(layout.shard_path(shards, 0))
    for shard in range(1, int(share * plan.num_shards)):
        store.publish(layout.shard_path(shards, shard), data)


class FirstUnitError(Exception):
    """Planning is over: work begins."""


class _NoWorkers:
    """Machines, and an executor, for a run that is stopped when it hands out its first unit."""

    def executor(self, spec: WorkerSpec) -> Executor:
        return self

    def train(self, store: Store, job: TrainingJob) -> None:
        raise NotImplementedError

    def has_room(self) -> bool:
        return True

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        raise FirstUnitError

    def wait(self, timeout: float) -> list[Outcome]:
        return []

    def close(self) -> None:
        pass


def run_to_end(uri: str, config: EngineConfig) -> None:
    """As `sa-engine run`, without its report."""
    run_rounds(open_store(uri), config, Progress(Console(file=StringIO())), _NoWorkers())


def run_to_first_unit(uri: str, config: EngineConfig) -> None:
    try:
        run_to_end(uri, config)
    except FirstUnitError:
        return
    raise AssertionError("the run ended without work")


if __name__ == "__main__":
    main()
