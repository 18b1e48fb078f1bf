"""Planning and resuming a run of many images: time and peak memory of each step.

    python -m benchmarks.planning --images 1000000

The corpus is made up, and every shard is a copy of one real, empty shard: what is measured is the
engine's bookkeeping, not the reading of photographs or masks. Each step is what the commands call,
`run_rounds` and `run_status`, in a process of its own: one that plans, one that goes on where half
of the shards exist, one that seals, one that finds all done, and a look at the status.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from benchmarks.process import Cost, cost_of
from engine import layout
from engine.config import EngineConfig, RoundConfig
from engine.context import WorkerSpec
from engine.corpus import CORPUS, CORPUS_SCHEMA, ROWS_PER_GROUP, CorpusRow, assemble_corpus
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
    _print("assemble the corpus", cost_of(write_corpus, store.uri, num_images))
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


def write_corpus(uri: str, num_images: int) -> None:
    """What scanning would have recorded of photographs, put together as a run does it."""
    table = assemble_corpus(_parts(num_images))
    open_store(uri).publish_written(
        CORPUS, lambda file: pq.write_table(table, file, row_group_size=ROWS_PER_GROUP)
    )


def _parts(num_images: int) -> Iterator[pa.Table]:
    for start in range(0, num_images, ROWS_PER_PART):
        numbers = range(start, min(start + ROWS_PER_PART, num_images))
        rows = [_corpus_row(number) for number in numbers]
        yield pa.Table.from_pylist([row.model_dump() for row in rows], schema=CORPUS_SCHEMA)


def _corpus_row(number: int) -> CorpusRow:
    name = f"{number // 1000:06d}/photograph_{number:09d}.jpg"
    return CorpusRow(
        image_id=number,
        source="photographs",
        source_id="",
        uri=f"/photographs/{name}",
        file_name=name,
        width=SIDE,
        height=SIDE,
        orientation=1,
        size_bytes=300_000,
        sha256=sha256(name.encode()).hexdigest(),
        split="train",
        status=ImageStatus.OK,
        reason="",
    )


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
            _corpus_row(number),
            plan.header.stage,
            0,
            size_hw=(SIDE, SIDE),
            output=StageOutput(masks=()),
            worker_seconds=0.0,
        )
        for number in plan.shard(0).tolist()
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
