"""Stage three: the model annotates alone, from a grid of points over the image and its crops."""

from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from model.prompt_encoder import Prompts
from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.base import Provenance, StageOutput
from stages.batch import MaskBatch
from stages.crops import Crop, crop_layers
from stages.filters import (
    DropReason,
    Drops,
    FilterConfig,
    clean_small_regions,
    drop_duplicates,
    drop_whole_image,
    mask_box,
    touches_crop_edge,
)
from stages.predictor import MASK_THRESHOLD, Image, Predictor, embed
from stages.prompts import point_grid
from stages.records import MaskRecord, Record, Source, StageName
from stages.rle import encode_window, rle_area, rle_bbox

# Axes: P prompts, M outputs of a prompt, N candidates.


class Preset(StrEnum):
    PAPER = "paper"
    """Appendix B."""
    OFFICIAL = "official"
    """The released code's defaults: one window, no clean-up."""


class FullyAutomaticConfig(Record):
    """The defaults are the paper's (Appendix B): 3072 prompts in 21 windows of an image."""

    points_per_side: PositiveInt = 32
    """Of the grid over the whole image."""
    crop_n_layers: NonNegativeInt = 2
    """Layer i looks at 2^i x 2^i crops."""
    crop_n_points_downscale_factor: PositiveInt = 2
    """The grid's side in layer i is points_per_side / factor^i."""
    crop_overlap_ratio: float = Field(default=512 / 1500, ge=0, lt=1)
    """Of the short side, in layer 1; halves with each layer."""
    points_per_batch: PositiveInt = 64
    """Prompts decoded at once: memory against speed, no effect on the masks."""
    filters: FilterConfig = FilterConfig()

    @staticmethod
    def preset(name: Preset) -> "FullyAutomaticConfig":
        if name is Preset.PAPER:
            return FullyAutomaticConfig()
        filters = FilterConfig(max_mask_area_fraction=None, min_mask_region_area=0)
        return FullyAutomaticConfig(
            crop_n_layers=0, crop_n_points_downscale_factor=1, filters=filters
        )


class FullyAutomatic:
    def __init__(self, sam: Sam, config: FullyAutomaticConfig, provenance: Provenance) -> None:
        self._sam, self._config, self._provenance = sam, config, provenance

    def run(self, image: Image, rng: np.random.Generator) -> StageOutput:
        """Every mask the model is sure of. Deterministic: the generator is not drawn from."""
        config, drops = self._config, Drops()
        crops = crop_layers(
            image.size_hw, num_layers=config.crop_n_layers, overlap_ratio=config.crop_overlap_ratio
        )
        found = MaskBatch.concat([self._masks_of_crop(image, crop, drops) for crop in crops])
        if len(crops) > 1:
            widths, heights = (found.crop_boxes_xyxy[:, 2:] - found.crop_boxes_xyxy[:, :2]).T
            smallest_first = (1 / np.maximum(widths * heights, 1)).astype(np.float32)
            found = drop_duplicates(found, smallest_first, config.filters.crop_nms_thresh, drops)
        found = clean_small_regions(found, config.filters, drops)
        found = drop_whole_image(found, image.size_hw, config.filters.max_mask_area_fraction, drops)
        masks = automatic_records(
            found, StageName.FULLY_AUTOMATIC, Source.AUTOMATIC, self._provenance
        )
        return StageOutput(masks=masks, drops=drops.as_dict())

    def _masks_of_crop(self, image: Image, crop: Crop, drops: Drops) -> MaskBatch:
        config = self._config
        side = config.points_per_side // config.crop_n_points_downscale_factor**crop.layer
        predictor = Predictor(
            self._sam,
            crop.size_hw,
            embed(self._sam, crop.cut(image.pixels)),
            stability_offset=config.filters.stability_score_offset,
        )
        points = point_grid(max(side, 1), crop.size_hw)
        found = confident_masks(
            predictor,
            crop,
            image.size_hw,
            points,
            config.filters,
            drops,
            per_batch=config.points_per_batch,
        )
        return drop_duplicates(found, found.predicted_iou, config.filters.box_nms_thresh, drops)


def confident_masks(
    predictor: Predictor,
    crop: Crop,
    size_hw: tuple[int, int],
    prompts: NDArray[np.float32],
    filters: FilterConfig,
    drops: Drops,
    *,
    per_batch: int,
) -> MaskBatch:
    """Decode prompts in one crop and keep the masks the model is sure of, in the image's frame.

    Args:
        size_hw: of the whole image.
        prompts: crop frame; (P, 2) points, three outputs each, or (P, 4) boxes_xyxy, one each.
        per_batch: prompts decoded at once.
    """
    batches = [
        _confident_batch(
            predictor, crop, size_hw, prompts[start : start + per_batch], filters, drops
        )
        for start in range(0, len(prompts), per_batch)
    ]
    return MaskBatch.concat([MaskBatch.empty(prompts.shape[1]), *batches])


def _confident_batch(
    predictor: Predictor,
    crop: Crop,
    size_hw: tuple[int, int],
    prompts: NDArray[np.float32],
    filters: FilterConfig,
    drops: Drops,
) -> MaskBatch:
    low_res, predicted_iou = _decode(predictor, prompts)
    confident = predicted_iou > filters.pred_iou_thresh
    drops[DropReason.LOW_PREDICTED_IOU] += int((~confident).sum())
    x0, y0, _, _ = crop.box_xyxy
    rles, boxes, kept, stability = [], [], [], []
    for p, m in torch.nonzero(confident).tolist():
        window = predictor.upscale.window(
            low_res[p, m], level=MASK_THRESHOLD - filters.stability_score_offset
        )
        mask = None if window is None else window.mask(MASK_THRESHOLD)
        if window is None or mask is None or not mask.any():
            drops[DropReason.EMPTY] += 1
            continue
        score = window.stability(MASK_THRESHOLD, filters.stability_score_offset)
        if score < filters.stability_score_thresh:
            drops[DropReason.LOW_STABILITY] += 1
            continue
        offset = (window.offset_xy[0] + x0, window.offset_xy[1] + y0)
        box = np.add(mask_box(mask), (*offset, *offset))
        if touches_crop_edge(box[None], crop.box_xyxy, size_hw, filters.crop_edge_tolerance).any():
            drops[DropReason.CROP_EDGE] += 1
            continue
        rles.append(encode_window(mask, offset_xy=offset, size_hw=size_hw))
        boxes.append(box)
        kept.append((p, m))
        stability.append(score)
    if not kept:
        return MaskBatch.empty(prompts.shape[1])
    rows = np.asarray([p for p, _ in kept])
    to_image = np.tile(np.asarray((x0, y0), dtype=np.float32), prompts.shape[1] // 2)
    return MaskBatch(
        rles=tuple(rles),
        boxes_xyxy=np.asarray(boxes, dtype=np.float32),
        predicted_iou=np.asarray([float(predicted_iou[p, m]) for p, m in kept], dtype=np.float32),
        stability_score=np.asarray(stability, dtype=np.float32),
        prompts=prompts[rows] + to_image,
        crop_boxes_xyxy=np.tile(np.asarray(crop.box_xyxy, dtype=np.float32), (len(kept), 1)),
    )


def automatic_records(
    batch: MaskBatch, stage: StageName, source: Source, provenance: Provenance
) -> tuple[MaskRecord, ...]:
    """Masks that nobody clicked, in SA-1B's fields."""
    points = batch.prompts if batch.prompts.shape[1] == 2 else None
    return tuple(
        MaskRecord(
            id=i,
            segmentation=rle,
            bbox=rle_bbox(rle),
            area=rle_area(rle),
            predicted_iou=float(batch.predicted_iou[i]),
            stability_score=float(batch.stability_score[i]),
            crop_box=_xywh(batch.crop_boxes_xyxy[i]),
            point_coords=() if points is None else ((float(points[i, 0]), float(points[i, 1])),),
            stage=stage,
            round=provenance.round,
            source=source,
            annotator="",
            seconds=0.0,
            num_clicks=0,
            checkpoint=provenance.checkpoint,
        )
        for i, rle in enumerate(batch.rles)
    )


def _decode(predictor: Predictor, prompts: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """(P, M, S/4, S/4) logits and (P, M) predicted IoU on the CPU."""
    transform: ResizeLongestSide = predictor.transform
    given = torch.from_numpy(prompts).to(predictor.embedding.device)
    if prompts.shape[1] == 2:
        points = transform.apply_coords(given)[:, None]
        labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
        question = Prompts(point_coords=points, point_labels=labels)
    else:
        question = Prompts(boxes=transform.apply_boxes(given))
    with torch.inference_mode():
        answer = predictor.sam.decode(
            predictor.embedding, question, multimask_output=prompts.shape[1] == 2
        )
    return answer.low_res_masks.float().cpu(), answer.predicted_iou.float().cpu()


def _xywh(box_xyxy: NDArray[np.float32]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return x0, y0, x1 - x0, y1 - y0
