"""Stage three: the model annotates alone, from a grid of points over the image and its crops."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from model.factored_decoder import FactoredDecoder
from model.mask_scorer import shipped_mask_scorer
from model.prompt_encoder import Prompts
from model.sam import Sam
from stages.base import Provenance, StageOutput
from stages.batch import MaskBatch
from stages.crops import Crop, crop_layers
from stages.filters import (
    DropReason,
    Drops,
    FilterConfig,
    box_nms,
    clean_small_regions,
    drop_duplicates,
    drop_whole_image,
    touches_crop_edge,
    whole_image_area,
)
from stages.predictor import MASK_THRESHOLD, Image, Precision, Predictor, embed_batch
from stages.prompts import point_grid
from stages.records import MaskRecord, Record, Rle, Source, StageName
from stages.rle import encode_window, rle_area, rle_bbox
from stages.superpixels import UNCORRECTED, Superpixels
from stages.threads import spread

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
    points_per_batch: PositiveInt = 16
    """Prompts decoded at once, on a CPU by each thread: few fit a core's cache, a GPU wants many.
    Rounding apart, no effect on the masks."""
    crops_per_batch: PositiveInt = 1
    """Crops encoded at once: a GPU wants more, if it has the memory. Rounding apart, no effect on
    the masks."""
    precision: Precision = "fp32"
    """Of the image encoder; bf16 is faster on processors that have it, and moves edges a little."""
    snap: bool = False
    """Make masks of superpixels (`stages/snapped_upscale.py`), in each crop of its own. For models
    that have seen little: better edges and a better order, for about a second a crop on a CPU."""
    rescore: bool = False
    """Let the scorer of masks (`model/mask_scorer.py`) predict the IoU of those made of
    superpixels, instead of the model's head and the superpixels' agreement: for photographs, from
    which it was taught, whole ones: in crops things are larger. Without `snap` nothing is scored
    again."""
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
        found = MaskBatch.concat(
            [
                self._masks_of_crop(image, crop, embedding, drops)
                for crop, embedding in self._embedded(image, crops)
            ]
        )
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

    def _embedded(self, image: Image, crops: Sequence[Crop]) -> Iterator[tuple[Crop, Tensor]]:
        """Each crop with its embedding (1, C, h, w)."""
        config = self._config
        for start in range(0, len(crops), config.crops_per_batch):
            some = crops[start : start + config.crops_per_batch]
            cuts = [crop.cut(image.pixels) for crop in some]
            embeddings = embed_batch(self._sam, cuts, config.precision)
            yield from zip(some, embeddings[:, None], strict=True)

    def _masks_of_crop(
        self, image: Image, crop: Crop, embedding: Tensor, drops: Drops
    ) -> MaskBatch:
        config = self._config
        side = config.points_per_side // config.crop_n_points_downscale_factor**crop.layer
        predictor = Predictor(
            self._sam,
            crop.size_hw,
            embedding,
            stability_offset=config.filters.stability_score_offset,
            superpixels=self._superpixels(crop.cut(image.pixels)),
        )
        points = point_grid(max(side, 1), crop.size_hw)
        return confident_masks(
            predictor,
            crop,
            image.size_hw,
            points,
            config.filters,
            drops,
            prompts_per_batch=config.points_per_batch,
        )

    def _superpixels(self, pixels: NDArray[np.uint8]) -> Superpixels | None:
        if not self._config.snap:
            return None
        scorer = shipped_mask_scorer() if self._config.rescore else None
        return Superpixels(pixels, UNCORRECTED, scorer)


@dataclass(frozen=True)
class Candidate:
    """A mask that the model is sure of, not yet drawn."""

    low_res_mask: Tensor
    """(S/4, S/4) logits."""
    box_xyxy: tuple[int, int, int, int]
    """Outermost pixels, both ends inclusive, crop frame."""
    predicted_iou: float
    stability_score: float
    prompt: NDArray[np.float32]


def confident_masks(
    predictor: Predictor,
    crop: Crop,
    size_hw: tuple[int, int],
    prompts: NDArray[np.float32],
    filters: FilterConfig,
    drops: Drops,
    *,
    prompts_per_batch: int,
) -> MaskBatch:
    """Decode prompts in one crop; the masks the model is sure of, duplicates removed, best first.

    Only what survives is drawn and encoded.

    Args:
        size_hw: of the whole image.
        prompts: crop frame; (P, 2) points, three outputs each, or (P, 4) boxes_xyxy, one each.
        prompts_per_batch: decoded at once.

    Returns:
        Masks in the image's frame.
    """
    if len(prompts) == 0:
        return MaskBatch.empty(prompts.shape[1])
    decoder = predictor.sam.prepare(predictor.embedding)
    batches = np.array_split(prompts, -(-len(prompts) // prompts_per_batch))
    too_large = whole_image_area(size_hw, filters.max_mask_area_fraction)
    on_cpu = predictor.embedding.device.type == "cpu"  # a GPU has memory for one batch at a time
    answers = (spread if on_cpu else map)(
        lambda some: _candidates(predictor, decoder, some, filters, too_large), batches
    )
    candidates = []
    for found, dropped in answers:
        candidates += found
        drops.update(dropped)
    if not candidates:
        return MaskBatch.empty(prompts.shape[1])
    x0, y0, _, _ = crop.box_xyxy
    boxes = np.asarray([c.box_xyxy for c in candidates], dtype=np.float32)
    boxes += np.asarray((x0, y0, x0, y0), dtype=np.float32)
    at_edge = touches_crop_edge(boxes, crop.box_xyxy, size_hw, filters.crop_edge_tolerance)
    drops[DropReason.CROP_EDGE] += int(at_edge.sum())
    (inside,) = np.nonzero(~at_edge)
    scores = np.asarray([c.predicted_iou for c in candidates], dtype=np.float32)
    kept = inside[box_nms(boxes[inside], scores[inside], filters.box_nms_thresh)]
    drops[DropReason.DUPLICATE] += len(inside) - len(kept)
    survivors = [candidates[i] for i in kept]
    to_image = np.tile(np.asarray((x0, y0), dtype=np.float32), prompts.shape[1] // 2)
    return MaskBatch(
        rles=tuple(_encode(predictor, c.low_res_mask, (x0, y0), size_hw) for c in survivors),
        boxes_xyxy=boxes[kept],
        predicted_iou=scores[kept],
        stability_score=np.asarray([c.stability_score for c in survivors], dtype=np.float32),
        prompts=np.asarray([c.prompt for c in survivors]).reshape(-1, prompts.shape[1]) + to_image,
        crop_boxes_xyxy=np.tile(np.asarray(crop.box_xyxy, dtype=np.float32), (len(kept), 1)),
    )


def _candidates(
    predictor: Predictor,
    decoder: FactoredDecoder,
    prompts: NDArray[np.float32],
    filters: FilterConfig,
    too_large: float,
) -> tuple[list[Candidate], Drops]:
    """Masks that are confident, stable, and neither empty nor of the whole image, whose box would
    make duplicates of what reaches from edge to edge.

    Args:
        too_large: pixels.
    """
    drops = Drops()
    low_res, predicted_iou, prompt_index = _decode(predictor, decoder, prompts, filters, drops)
    stability, confidence = predictor.upscale.scores(
        low_res,
        predicted_iou.numpy(),
        threshold=MASK_THRESHOLD,
        offset=filters.stability_score_offset,
    )
    candidates = []
    for i, score in enumerate(stability):
        if np.isnan(score):
            drops[DropReason.EMPTY] += 1
            continue
        if confidence[i] <= filters.pred_iou_thresh:
            drops[DropReason.LOW_PREDICTED_IOU] += 1
            continue
        if score < filters.stability_score_thresh:
            drops[DropReason.LOW_STABILITY] += 1
            continue
        window = predictor.upscale.mask(low_res[i], threshold=MASK_THRESHOLD)
        if window is None:
            drops[DropReason.EMPTY] += 1
            continue
        if window.mask.sum() >= too_large:
            drops[DropReason.WHOLE_IMAGE] += 1
            continue
        (x, y), (h, w) = window.offset_xy, window.mask.shape
        candidate = Candidate(
            low_res_mask=low_res[i].clone(),  # or the whole batch would be kept with it
            box_xyxy=(x, y, x + w - 1, y + h - 1),
            predicted_iou=float(confidence[i]),
            stability_score=float(score),
            prompt=prompts[prompt_index[i]],
        )
        candidates.append(candidate)
    return candidates, drops


def _decode(
    predictor: Predictor,
    decoder: FactoredDecoder,
    prompts: NDArray[np.float32],
    filters: FilterConfig,
    drops: Drops,
) -> tuple[Tensor, Tensor, Tensor]:
    """On the CPU, of N outputs of enough predicted IoU: logits (N, S/4, S/4), that IoU, prompt."""
    transform = predictor.transform
    given = torch.from_numpy(prompts).to(predictor.embedding.device)
    if prompts.shape[1] == 2:
        points = transform.apply_coords(given)[:, None]
        labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
        question = Prompts(point_coords=points, point_labels=labels)
    else:
        question = Prompts(boxes=transform.apply_boxes(given))
    reading = decoder.read(question, multimask_output=prompts.shape[1] == 2)
    least = predictor.upscale.least_of_head(filters.pred_iou_thresh)
    confident = reading.predicted_iou > least
    drops[DropReason.LOW_PREDICTED_IOU] += int((~confident).sum())
    (promising,) = torch.nonzero(confident.any(dim=1), as_tuple=True)
    low_res = decoder.masks(reading, promising)[confident[promising]]
    prompt_index, _ = torch.nonzero(confident, as_tuple=True)
    return low_res.float().cpu(), reading.predicted_iou[confident].float().cpu(), prompt_index.cpu()


def _encode(
    predictor: Predictor, low_res_mask: Tensor, offset_xy: tuple[int, int], size_hw: tuple[int, int]
) -> Rle:
    window = predictor.upscale.mask(low_res_mask, threshold=MASK_THRESHOLD)
    assert window is not None  # a candidate's mask has pixels
    (x, y), (x0, y0) = window.offset_xy, offset_xy
    return encode_window(window.mask, offset_xy=(x + x0, y + y0), size_hw=size_hw)


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


def _xywh(box_xyxy: NDArray[np.float32]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return x0, y0, x1 - x0, y1 - y0
