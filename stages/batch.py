"""MaskBatch: candidate masks of one image as aligned columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.records import Rle

# Axes: N candidates.


@dataclass(frozen=True)
class MaskBatch:
    rles: tuple[Rle, ...]
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) outermost pixels of each mask, both ends inclusive, image frame."""
    predicted_iou: NDArray[np.float32]
    """(N,)"""
    stability_score: NDArray[np.float32]
    """(N,)"""
    prompts: NDArray[np.float32]
    """(N, 2) the point, or (N, 4) the box_xyxy, that asked for the mask, image frame."""
    crop_boxes_xyxy: NDArray[np.float32]
    """(N, 4) window each mask was found in, right and bottom exclusive."""

    def __len__(self) -> int:
        return len(self.rles)

    def select(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "MaskBatch":
        """The candidates at these positions, in this order."""
        positions = np.arange(len(self))[index]
        return MaskBatch(
            rles=tuple(self.rles[i] for i in positions),
            boxes_xyxy=self.boxes_xyxy[positions],
            predicted_iou=self.predicted_iou[positions],
            stability_score=self.stability_score[positions],
            prompts=self.prompts[positions],
            crop_boxes_xyxy=self.crop_boxes_xyxy[positions],
        )

    @staticmethod
    def empty(prompt_size: int = 2) -> "MaskBatch":
        def column(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, dtype=np.float32)

        return MaskBatch(
            (), column(0, 4), column(0), column(0), column(0, prompt_size), column(0, 4)
        )

    @staticmethod
    def concat(batches: Sequence["MaskBatch"]) -> "MaskBatch":
        return MaskBatch(
            rles=tuple(rle for batch in batches for rle in batch.rles),
            boxes_xyxy=np.concatenate([batch.boxes_xyxy for batch in batches]),
            predicted_iou=np.concatenate([batch.predicted_iou for batch in batches]),
            stability_score=np.concatenate([batch.stability_score for batch in batches]),
            prompts=np.concatenate([batch.prompts for batch in batches]),
            crop_boxes_xyxy=np.concatenate([batch.crop_boxes_xyxy for batch in batches]),
        )
