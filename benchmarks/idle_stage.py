"""A stage that does nothing, and what it takes to run it on workers.

In a module of its own: what Ray is to find by name on a worker cannot live in a script.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from engine.context import WorkerContext
from engine.worker import ShardUnit
from stages.base import Stage, StageOutput
from stages.filters import mask_box
from stages.predictor import Image
from stages.records import MaskRecord, Source, StageName
from stages.rle import encode_rle

SIZE_HW = (480, 640)
"""Of the images that the made-up masks fit."""


@dataclass(frozen=True)
class NoModel:
    """A stage that has its answer ready."""

    masks: tuple[MaskRecord, ...]

    def run(self, image: Image, rng: np.random.Generator) -> StageOutput:
        return StageOutput(self.masks)


@dataclass(frozen=True, kw_only=True)
class IdleUnit(ShardUnit):
    """A shard of a stage that does nothing; all else is the engine's."""

    num_masks: int

    def _stage(self, context: WorkerContext) -> Stage:
        return NoModel(made_up_masks(self.num_masks))


@dataclass(frozen=True)
class Prepare:
    """Done when a worker has started and holds the masks, as it would hold a model."""

    num_masks: int

    def run(self, context: WorkerContext) -> None:
        made_up_masks(self.num_masks)


@cache
def made_up_masks(count: int) -> tuple[MaskRecord, ...]:
    """Discs of all sizes."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(SIZE_HW)
    masks = []
    for number in range(count):
        x, y, radius = rng.uniform((0, 0, 5), (SIZE_HW[1], SIZE_HW[0], 120))
        mask = np.hypot(columns - x, rows - y) <= radius
        x0, y0, x1, y1 = mask_box(mask)
        masks.append(
            MaskRecord(
                id=number,
                segmentation=encode_rle(mask),
                bbox=(x0, y0, x1 - x0 + 1, y1 - y0 + 1),
                area=int(mask.sum()),
                predicted_iou=rng.uniform(0.88, 1),
                stability_score=rng.uniform(0.95, 1),
                crop_box=(0, 0, SIZE_HW[1], SIZE_HW[0]),
                point_coords=((x, y),),
                stage=StageName.FULLY_AUTOMATIC,
                round=0,
                source=Source.AUTOMATIC,
                annotator="",
                seconds=0.0,
                num_clicks=0,
                checkpoint="none",
            )
        )
    return tuple(masks)
