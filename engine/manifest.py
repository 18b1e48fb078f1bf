"""What a round is to make, and what it made.

A plan is frozen before any work: the shards of the round, each an ordered list of images. A
manifest is written when all of them exist: it seals the round, and training and export read sealed
rounds only.
"""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from engine import layout
from engine.errors import ConfigError, CorruptFileError, EngineError, fault
from engine.shards import ShardHeader, read_footer, read_records
from engine.stats import Stats
from engine.store import Store
from stages.records import Record, StageName

SHARDS_AT_ONCE = 256
"""Read ahead while sealing. The statistics of one take 30 kB, of all of a large round gigabytes."""
_HEADER_KEY = b"sa_engine"


class PlanHeader(Record):
    round: int
    stage: StageName
    config_sha256: str
    checkpoint: str
    """Name and hash of the checkpoint that answers in this round."""
    edge_detector: str | None = None
    """SHA-256 of the weights that superpixels are made with; None where no mask is snapped, and in
    plans of earlier versions."""
    mask_scorer: str | None = None
    """The same of the weights that masks are rescored with; None where they are not."""
    click_scorer: str | None = None
    """The same of the weights that say what a click means; None where no click is snapped, and in
    plans of earlier versions."""


@dataclass(frozen=True)
class RoundPlan:
    header: PlanHeader
    image_ids: NDArray[np.int64]
    """All images of the round, shard after shard."""
    images_per_shard: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.image_ids) // self.images_per_shard)

    def shard(self, index: int) -> NDArray[np.int64]:
        """Image ids of one shard, in the order of its rows."""
        start = index * self.images_per_shard
        return self.image_ids[start : start + self.images_per_shard]

    def place(self, image_id: int) -> tuple[int, int] | None:
        """Shard and row of an image; None for one of another round."""
        found = np.flatnonzero(self.image_ids == image_id)
        if not len(found):
            return None
        shard, row = divmod(int(found[0]), self.images_per_shard)
        return shard, row


class ShardManifest(Record):
    path: str
    """Relative to the run's folder."""
    sha256: str
    size: int
    """Bytes."""
    num_images: int
    num_masks: int


class RoundManifest(Record):
    header: PlanHeader
    shards: tuple[ShardManifest, ...]
    stats: Stats


def freeze_plan(store: Store, folder: str, plan: RoundPlan) -> RoundPlan:
    """Publish a plan, or load the one that an earlier run froze; they must be the same."""
    table = pa.table({"image_id": pa.array(plan.image_ids)}).replace_schema_metadata(
        {
            _HEADER_KEY: plan.header.model_dump_json(),
            b"images_per_shard": str(plan.images_per_shard),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    store.publish(layout.plan_path(folder), buffer.getvalue())
    frozen = load_plan(store, folder)
    wanted = plan.header
    unsaid = {
        name: None
        for name in ("edge_detector", "click_scorer")
        if getattr(frozen.header, name) is None
    }
    wanted = wanted.model_copy(update=unsaid)
    if frozen.header != wanted:
        raise ConfigError(
            f"cannot resume {folder}: planned with {_differences(frozen.header, wanted)}; "
            "start a new run or restore what changed"
        )
    return frozen


def load_plan(store: Store, folder: str) -> RoundPlan:
    path = layout.plan_path(folder)
    data = store.read(path)
    try:
        table = pq.read_table(io.BytesIO(data))
        metadata = table.schema.metadata
        return RoundPlan(
            header=PlanHeader.model_validate_json(metadata[_HEADER_KEY]),
            image_ids=table["image_id"].to_numpy(),
            images_per_shard=int(metadata[b"images_per_shard"]),
        )
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFileError(f"{path} is not a plan: {reason}; start a new run") from error


def published_shards(store: Store, shards: str) -> set[int]:
    """Numbers of the whole shards that exist: one listing."""
    numbers = (layout.shard_of(file.path) for file in store.list(shards))
    return {number for number in numbers if number is not None}


def seal(store: Store, folder: str, plan: RoundPlan) -> RoundManifest:
    """Write the manifest of a round whose shards all exist; a sealed round is read back."""
    path = layout.manifest_path(folder)
    if not store.exists(path):
        shards = layout.shards_folder(folder)
        missing = set(range(plan.num_shards)) - published_shards(store, shards)
        if missing:
            raise EngineError(f"cannot seal {folder}: shards {sorted(missing)[:10]} are missing")
        described, stats = _describe_all(store, shards, plan.num_shards)
        manifest = RoundManifest(header=plan.header, shards=described, stats=stats)
        store.publish(path, manifest.model_dump_json(indent=1).encode())
    return load_manifest(store, folder)


def load_manifest(store: Store, folder: str) -> RoundManifest:
    path = layout.manifest_path(folder)
    try:
        return RoundManifest.model_validate_json(store.read(path))
    except ValidationError as error:
        raise CorruptFileError(f"{path} is not a manifest: {error}") from error


def broken_files(store: Store, folder: str) -> Iterator[str]:
    """One line for each thing in a round's folder that is not what it should be."""
    shards = layout.shards_folder(folder)
    try:
        if not store.exists(layout.plan_path(folder)):
            return
        plan = load_plan(store, folder)
        sealed = store.exists(layout.manifest_path(folder))
        manifest = load_manifest(store, folder) if sealed else None
        existing = published_shards(store, shards)
    except (EngineError, OSError) as error:
        yield fault(folder, error)
        return
    for shard in range(plan.num_shards):
        path = layout.shard_path(shards, shard)
        if shard in existing:
            try:
                yield from _faults(store, path, plan, shard, manifest)
            except (EngineError, OSError) as error:
                yield fault(path, error)
        elif manifest is not None:
            yield f"{path}: missing from a sealed round"
    for shard in sorted(existing - set(range(plan.num_shards))):
        yield f"{layout.shard_path(shards, shard)}: not in the plan"


def _faults(
    store: Store, path: str, plan: RoundPlan, shard: int, manifest: RoundManifest | None
) -> Iterator[str]:
    footer = read_footer(store, path)
    records = list(read_records(store, path))
    if [record.image_id for record in records] != plan.shard(shard).tolist():
        yield f"{path}: its images are not those of the plan"
    planned = ShardHeader(shard=shard, **plan.header.model_dump())
    if footer.header != planned:
        yield f"{path}: made with {_differences(footer.header, planned, 'planned')}"
    if footer.num_masks != sum(len(record.masks) for record in records):
        yield f"{path}: its footer counts {footer.num_masks} masks, its rows hold another number"
    if manifest is not None:
        if shard >= len(manifest.shards):
            yield f"{path}: not in the manifest"
        elif hashlib.sha256(store.read(path)).hexdigest() != manifest.shards[shard].sha256:
            yield f"{path}: its bytes are not those that were sealed"


def _describe_all(
    store: Store, shards: str, num_shards: int
) -> tuple[tuple[ShardManifest, ...], Stats]:
    described: list[ShardManifest] = []
    total = Stats()
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, num_shards, SHARDS_AT_ONCE):
            numbers = range(start, min(start + SHARDS_AT_ONCE, num_shards))
            paths = [layout.shard_path(shards, number) for number in numbers]
            for shard, stats in pool.map(partial(_describe, store), paths):
                described.append(shard)
                total += stats
    return tuple(described), total


def _describe(store: Store, path: str) -> tuple[ShardManifest, Stats]:
    data = store.read(path)
    try:
        footer = read_footer(store, path)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error}; delete it and run the same command again") from error
    described = ShardManifest(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        num_images=footer.num_images,
        num_masks=footer.num_masks,
    )
    return described, footer.stats


def _differences(found: Record, expected: Record, now: str = "is now") -> str:
    """Fields that differ, with both values."""
    before, after = found.model_dump(mode="json"), expected.model_dump(mode="json")
    return ", ".join(
        f"{name} {before[name]}, {now} {after[name]}"
        for name in before
        if before[name] != after[name]
    )
