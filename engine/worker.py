"""One shard, start to finish: read, stage, write, publish."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine import layout
from engine.context import WorkerContext
from engine.corpus import CorpusRow
from engine.errors import UnreadableImageError
from engine.shards import ShardHeader, publish_shard
from stages.base import Provenance, Stage, StageOutput
from stages.fully_automatic import FullyAutomatic, FullyAutomaticConfig
from stages.records import ImageRecord, ImageStatus, StageName
from stages.semi_automatic import SemiAutomatic, SemiAutomaticConfig


@dataclass(frozen=True)
class ShardUnit:
    """Run a stage over the images of a shard and publish its records."""

    header: ShardHeader
    images: tuple[CorpusRow, ...]
    shards: str
    """Folder of the shards, within the run's store."""
    stage_config: FullyAutomaticConfig | SemiAutomaticConfig
    seed: int
    part: int | None = None
    """Position within its shard, of an image that is worked on alone."""

    @property
    def path(self) -> str:
        return layout.shard_path(self.shards, self.header.shard, self.part)

    def run(self, context: WorkerContext) -> bool:
        if context.store.exists(self.path):  # a worker of a killed driver was first
            return False
        stage = self._stage(context)
        publish_shard(context.store, self.path, self.header, self._records(context, stage))
        return True

    def _records(self, context: WorkerContext, stage: Stage) -> Iterator[ImageRecord]:
        for row in self.images:
            yield work_on(context, stage, row, self.header, seed=self.seed)

    def _stage(self, context: WorkerContext) -> Stage:
        provenance = Provenance(self.header.round, self.header.checkpoint)
        sam, config = context.checkpoint.sam, self.stage_config
        if isinstance(config, SemiAutomaticConfig):
            return SemiAutomatic(sam, context.detector, config, provenance)
        return FullyAutomatic(sam, config, provenance)


def work_on(
    context: WorkerContext, stage: Stage, row: CorpusRow, header: ShardHeader, *, seed: int
) -> ImageRecord:
    """The record of one image; an image that is no picture has one too."""
    started = time.monotonic()
    try:
        image = context.read_image(row)
    except UnreadableImageError as error:
        return empty_record(row, header.stage, header.round, ImageStatus(error.status), str(error))
    output = stage.run(image, np.random.default_rng([seed, header.round, row.image_id]))
    height, width = image.size_hw
    return image_record(
        row,
        header.stage,
        header.round,
        size_hw=(height, width),
        output=output,
        worker_seconds=time.monotonic() - started,
    )


def image_record(
    row: CorpusRow,
    stage: StageName,
    round_index: int,
    *,
    size_hw: tuple[int, int],
    output: StageOutput,
    worker_seconds: float,
) -> ImageRecord:
    height, width = size_hw
    return ImageRecord(
        image_id=row.image_id,
        file_name=row.file_name,
        uri=row.uri,
        width=width,
        height=height,
        sha256=row.sha256,
        stage=stage,
        round=round_index,
        status=ImageStatus.OK,
        error="",
        masks=output.masks,
        drops=output.drops,
        annotator_seconds=0.0,
        worker_seconds=worker_seconds,
    )


def empty_record(
    row: CorpusRow, stage: StageName, round_index: int, status: ImageStatus, error: str
) -> ImageRecord:
    """The row of an image that has no masks for a reason."""
    nothing = image_record(
        row,
        stage,
        round_index,
        size_hw=(row.height, row.width),
        output=StageOutput(masks=()),
        worker_seconds=0.0,
    )
    return nothing.model_copy(update={"status": status, "error": error})
