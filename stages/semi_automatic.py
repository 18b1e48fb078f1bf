"""Stage two: confident masks are found first and locked, annotators draw what is missing.

A one-class "object" detector proposes boxes, the model turns each into a mask, and the filters of
the automatic stage decide which are sure enough to show as done. The paper prompts nothing through
SAM here that it tells of; that the boxes go through SAM is our choice.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from model.detector import ObjectDetector
from model.sam import Sam
from stages.base import Provenance, StageOutput
from stages.crops import Crop
from stages.filters import (
    DropReason,
    Drops,
    FilterConfig,
    box_nms,
    clean_small_regions,
    drop_whole_image,
)
from stages.fully_automatic import automatic_records, confident_masks
from stages.predictor import Image, Precision, Predictor, embed_batch
from stages.records import Record, Source, StageName
from stages.superpixels import UNCORRECTED, Superpixels


class SemiAutomaticConfig(Record):
    """The paper gives none of these numbers: thresholds are those of the automatic stage."""

    detector_score_thresh: float = Field(default=0.3, ge=0, le=1)
    """Boxes below are not shown to the model."""
    detector_nms_thresh: float = Field(default=0.7, ge=0, le=1)
    """Box IoU above which the weaker of two proposals is a duplicate."""
    max_boxes: PositiveInt = 100
    """Per image, best scores first."""
    boxes_per_batch: PositiveInt = 16
    """Boxes decoded at once: few fit a core's cache, a GPU wants many. Rounding apart, no effect on
    the masks."""
    precision: Precision = "fp32"
    """Of the image encoder, as in the fully automatic stage."""
    snap: bool = False
    """Make masks of superpixels, as in the fully automatic stage."""
    filters: FilterConfig = FilterConfig()
    max_mask_seconds: PositiveFloat = 30.0
    """As in stage one: a mask that took longer is the last of its image."""


class SemiAutomatic:
    """Proposes the prefilled masks of an image."""

    def __init__(
        self,
        sam: Sam,
        detector: ObjectDetector,
        config: SemiAutomaticConfig,
        provenance: Provenance,
    ) -> None:
        self._sam, self._detector = sam, detector
        self._config, self._provenance = config, provenance

    def run(self, image: Image, rng: np.random.Generator) -> StageOutput:
        """Masks that nobody needs to draw. Deterministic: the generator is not drawn from."""
        drops, filters = Drops(), self._config.filters
        embedding = embed_batch(self._sam, [image.pixels], self._config.precision)
        boxes = self._boxes(Predictor(self._sam, image.size_hw, embedding), drops)
        snap = self._config.snap and len(boxes) > 0
        predictor = Predictor(
            self._sam,
            image.size_hw,
            embedding,
            stability_offset=filters.stability_score_offset,
            superpixels=Superpixels(image.pixels, UNCORRECTED) if snap else None,
        )
        height, width = image.size_hw
        whole = Crop((0, 0, width, height), layer=0)
        found = confident_masks(
            predictor,
            whole,
            image.size_hw,
            boxes,
            filters,
            drops,
            prompts_per_batch=self._config.boxes_per_batch,
        )
        found = clean_small_regions(found, filters, drops)
        found = drop_whole_image(found, image.size_hw, filters.max_mask_area_fraction, drops)
        masks = automatic_records(
            found, StageName.SEMI_AUTOMATIC, Source.PREFILLED, self._provenance
        )
        return StageOutput(masks=masks, drops=drops.as_dict())

    def _boxes(self, predictor: Predictor, drops: Drops) -> NDArray[np.float32]:
        """(N, 4) proposals, image frame, best first."""
        boxes, scores = detect(self._detector, predictor)
        sure = scores >= self._config.detector_score_thresh
        drops[DropReason.LOW_DETECTOR_SCORE] += int((~sure).sum())
        boxes, scores = boxes[sure], scores[sure]
        kept = box_nms(boxes, scores, self._config.detector_nms_thresh)
        drops[DropReason.DUPLICATE] += len(boxes) - len(kept)
        drops[DropReason.TOO_MANY_BOXES] += max(0, len(kept) - self._config.max_boxes)
        return boxes[kept[: self._config.max_boxes]]


def detect(
    detector: ObjectDetector, predictor: Predictor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 4) boxes_xyxy in the image's frame and (N,) scores in [0, 1], unfiltered."""
    with torch.inference_mode():
        found = detector.predict(predictor.embedding)[0]
    height, width = predictor.size_hw
    boxes = predictor.transform.invert_boxes(found.boxes).cpu().numpy()
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    proper = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return boxes[proper], found.scores.float().cpu().numpy()[proper]
