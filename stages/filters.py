"""Which candidates survive: confidence, stability, edges, duplicates, small regions.

Every refusal has a reason, and for each image candidates = survivors + drops.
"""

from collections import Counter
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from stages.batch import MaskBatch
from stages.crops import BoxXyxy
from stages.records import Record
from stages.rle import Mask, rle_area, rle_bbox
from stages.small_regions import clean_rle


class DropReason(StrEnum):
    LOW_DETECTOR_SCORE = "low_detector_score"
    TOO_MANY_BOXES = "too_many_boxes"
    LOW_PREDICTED_IOU = "low_predicted_iou"
    EMPTY = "empty"
    LOW_STABILITY = "low_stability"
    CROP_EDGE = "crop_edge"
    WHOLE_IMAGE = "whole_image"
    DUPLICATE = "duplicate"
    SMALL_REGION = "small_region"
    FLAGGED = "flagged"
    """A prefilled mask that its annotator calls wrong."""
    REJECTED = "rejected"
    """A mask of an image that its reviewer refused."""


class Drops(Counter[str]):
    """Refused candidates by reason."""

    def as_dict(self) -> dict[str, int]:
        return {str(reason): count for reason, count in self.items() if count}


class FilterConfig(Record):
    """Thresholds under SAM's names; the defaults are the paper's (Appendix B)."""

    pred_iou_thresh: float = Field(default=0.88, le=1)
    """Kept above, strictly."""
    stability_score_thresh: float = Field(default=0.95, le=1)
    """Kept from here on."""
    stability_score_offset: NonNegativeFloat = 1.0
    """In logits, to both sides of the mask threshold."""
    box_nms_thresh: float = Field(default=0.7, ge=0, le=1)
    """Box IoU above which the less confident of two masks of one crop is a duplicate."""
    crop_nms_thresh: float = Field(default=0.7, ge=0, le=1)
    """The same between crops, where the mask of the smaller crop stays."""
    crop_edge_tolerance: int = Field(default=20, ge=-1)
    """Pixels within which a mask counts as touching the edge of its crop; -1: none does."""
    max_mask_area_fraction: float | None = Field(default=0.95, gt=0, le=1)
    """Masks of this share of the image or more are dropped; None keeps them."""
    min_mask_region_area: NonNegativeInt = 100
    """Pixels; smaller components are removed and smaller holes filled. 0 leaves masks alone."""
    drop_small_masks: bool = True
    """Drop a mask all of whose components are below that; otherwise its largest one stays."""


def touches_crop_edge(
    boxes_xyxy: NDArray[np.float32], crop_box: BoxXyxy, size_hw: tuple[int, int], tolerance: int
) -> NDArray[np.bool_]:
    """(N,) whether a box ends at an edge of its crop that is not also an edge of the image."""
    height, width = size_hw
    near_crop = np.abs(boxes_xyxy - np.asarray(crop_box)) <= tolerance
    near_image = np.abs(boxes_xyxy - np.asarray((0, 0, width, height))) <= tolerance
    return np.asarray((near_crop & ~near_image).any(axis=1))


def box_nms(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], iou_threshold: float
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: kept positions, best score first; ties by position.

    As torchvision's, but of equal boxes without area one stays, where 0 / 0 would keep them all.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = boxes_xyxy.astype(np.float64).T
    areas = (x1 - x0) * (y1 - y0)
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        width = np.minimum(x1[best], x1[rest]) - np.maximum(x0[best], x0[rest])
        height = np.minimum(y1[best], y1[rest]) - np.maximum(y0[best], y0[rest])
        overlap = width.clip(min=0) * height.clip(min=0)
        union = areas[best] + areas[rest] - overlap
        # A box of one row or column has no area; two such boxes are the same only when identical.
        same = (boxes_xyxy[rest] == boxes_xyxy[best]).all(axis=1)
        iou = np.where(union > 0, overlap / np.where(union > 0, union, 1), same)
        order = rest[iou <= iou_threshold]
    return np.asarray(kept, dtype=np.intp)


def drop_duplicates(
    batch: MaskBatch, scores: NDArray[np.float32], iou_threshold: float, drops: Drops
) -> MaskBatch:
    kept = box_nms(batch.boxes_xyxy, scores, iou_threshold)
    drops[DropReason.DUPLICATE] += len(batch) - len(kept)
    return batch.select(kept)


def clean_small_regions(batch: MaskBatch, config: FilterConfig, drops: Drops) -> MaskBatch:
    """Remove specks and fill pinholes; of masks that are now duplicates, unchanged ones stay."""
    if config.min_mask_region_area == 0 or len(batch) == 0:
        return batch
    rles, boxes, unchanged, kept = list(batch.rles), batch.boxes_xyxy.copy(), [], []
    for i, rle in enumerate(batch.rles):
        cleaned = clean_rle(rle, config.min_mask_region_area, drop_small=config.drop_small_masks)
        if cleaned is None:
            drops[DropReason.SMALL_REGION] += 1
            continue
        if cleaned is not rle:
            rles[i] = cleaned
            x, y, width, height = rle_bbox(cleaned)
            boxes[i] = (x, y, x + width - 1, y + height - 1)
        kept.append(i)
        unchanged.append(cleaned is rle)
    cleaned_batch = MaskBatch(
        rles=tuple(rles),
        boxes_xyxy=boxes,
        predicted_iou=batch.predicted_iou,
        stability_score=batch.stability_score,
        prompts=batch.prompts,
        crop_boxes_xyxy=batch.crop_boxes_xyxy,
    ).select(np.asarray(kept, dtype=np.intp))
    scores = np.asarray(unchanged, dtype=np.float32)
    # What an earlier NMS let pass must not fall here because this one is stricter.
    threshold = max(config.box_nms_thresh, config.crop_nms_thresh)
    return drop_duplicates(cleaned_batch, scores, threshold, drops)


def whole_image_area(size_hw: tuple[int, int], fraction: float | None) -> float:
    """Pixels from which on a mask is one of the whole image."""
    return np.inf if fraction is None else fraction * size_hw[0] * size_hw[1]


def drop_whole_image(
    batch: MaskBatch, size_hw: tuple[int, int], fraction: float | None, drops: Drops
) -> MaskBatch:
    least = whole_image_area(size_hw, fraction)
    kept = np.asarray([rle_area(rle) < least for rle in batch.rles], dtype=np.bool_)
    drops[DropReason.WHOLE_IMAGE] += int((~kept).sum())
    return batch.select(kept)


def mask_box(mask: Mask) -> tuple[int, int, int, int]:
    """Outermost pixels of a non-empty mask as xyxy, both ends inclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
