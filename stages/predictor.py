"""One embedded image and the questions one may ask it: the model as an annotator meets it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.prompt_encoder import PointLabel, Prompts
from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.click_answers import NUM_OFFERED, Clicked
from stages.given import given_logits
from stages.prompts import Point
from stages.rle import Mask
from stages.snapped_upscale import SnappedUpscale
from stages.superpixels import Superpixels
from stages.windows import WindowedUpscale, filled

MASK_THRESHOLD = 0.0
"""Logits above this are mask."""

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB."""

Precision = Literal["fp32", "bf16"]
"""Of the image encoder. The decoder stays in fp32: half precision gains nothing there."""


@dataclass(frozen=True)
class Image:
    """What a stage is given to work on."""

    image_id: int
    pixels: Pixels

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class Answer:
    """The model's answer to one set of prompts: M masks of one object, whole / part / subpart."""

    masks: tuple[Mask, ...]
    """M of (H, W), image frame."""
    predicted_iou: tuple[float, ...]
    stability_score: tuple[float, ...]
    low_res_masks: Tensor
    """(M, S/4, S/4) logits."""
    are_regions: tuple[bool, ...]
    """Those that the model has not made, but regions around clicks (`stages/click_answers.py`)."""
    snapped: bool = False
    """The masks are made of superpixels."""
    zoomed_in: bool = False
    """There was a second look, at a crop."""

    @property
    def best(self) -> int:
        """The output of highest predicted IoU."""
        return int(np.argmax(self.predicted_iou))


class Predictor:
    """An image embedded once, prompted many times."""

    def __init__(
        self,
        sam: Sam,
        size_hw: tuple[int, int],
        embedding: Tensor,
        *,
        stability_offset: float = 1.0,
        superpixels: Superpixels | None = None,
    ) -> None:
        """
        Args:
            size_hw: of the image that was embedded; prompts and masks are in its frame.
            embedding: (1, C, h, w), from `embed`.
            stability_offset: in logits, to both sides of the threshold.
            superpixels: of that image, where masks are to be made of them.
        """
        self.sam = sam
        self.size_hw = size_hw
        self.embedding = embedding
        self.transform = ResizeLongestSide(size_hw, sam.config.image_size)
        self.upscale = (
            WindowedUpscale(self.transform)
            if superpixels is None
            else SnappedUpscale(self.transform, superpixels)
        )
        self._stability_offset = stability_offset

    def predict(
        self,
        points: tuple[Point, ...] = (),
        labels: tuple[int, ...] = (),
        *,
        box_xyxy: tuple[float, float, float, float] | None = None,
        mask_input: Tensor | None = None,
        before: Mask | None = None,
        multimask_output: bool,
    ) -> Answer:
        """Masks for one object.

        Args:
            points: (x, y), image pixels.
            labels: 1 foreground, 0 background, one for each point.
            mask_input: (S/4, S/4) logits of an earlier answer.
            before: (H, W) the mask that the last point corrects. The model does not see it; with
                superpixels it says what there is to be added to, or taken from.
            multimask_output: three masks for an ambiguous prompt, or a single one.
        """
        prompts = self.prompts(points, labels, box_xyxy, mask_input)
        upscale = self.upscale
        is_one_click = multimask_output and labels == (1,) and box_xyxy is None
        if isinstance(upscale, SnappedUpscale) and (is_one_click or before is not None):
            clicked = upscale.clicked(points, labels, before)
            number = NUM_OFFERED if multimask_output else 1
            return self._meant(upscale, prompts, clicked, before, number)
        low_res, of_head = self.decode(prompts, multimask_output)
        stability, predicted_iou = upscale.scores(
            low_res, of_head, threshold=MASK_THRESHOLD, offset=self._stability_offset
        )
        windows = (upscale.mask(logits, threshold=MASK_THRESHOLD) for logits in low_res)
        return Answer(
            masks=tuple(filled(window, self.size_hw) for window in windows),
            predicted_iou=tuple(predicted_iou.tolist()),
            stability_score=tuple(np.nan_to_num(stability).tolist()),
            low_res_masks=low_res,
            are_regions=(False,) * len(low_res),
            snapped=isinstance(upscale, SnappedUpscale),
        )

    def _meant(
        self,
        upscale: SnappedUpscale,
        prompts: Prompts,
        clicked: Clicked,
        before: Mask | None,
        number: int,
    ) -> Answer:
        """Where there are superpixels, clicks are answered with regions around them as well."""
        low_res, of_head = self.decode(prompts, multimask_output=None)
        candidates = upscale.candidates(low_res, of_head, clicked, threshold=MASK_THRESHOLD)
        found = upscale.offered(candidates, before, number)
        logits = [
            given_logits(mask, self.transform) if output is None else low_res[output]
            for mask, output in zip(found.masks, found.outputs, strict=True)
        ]
        return Answer(
            masks=found.masks,
            predicted_iou=tuple(found.scores.predicted_iou.tolist()),
            stability_score=tuple(np.nan_to_num(found.scores.stability).tolist()),
            low_res_masks=torch.stack(logits),
            are_regions=tuple(output is None for output in found.outputs),
            snapped=True,
        )

    def prompts(
        self,
        points: tuple[Point, ...],
        labels: tuple[int, ...],
        box_xyxy: tuple[float, float, float, float] | None,
        mask_input: Tensor | None,
    ) -> Prompts:
        """As the model takes them.

        Raises:
            ValueError: labels that are none of a point's, or not one for each point.
        """
        if not set(labels) <= {PointLabel.PADDING, PointLabel.BACKGROUND, PointLabel.FOREGROUND}:
            raise ValueError(
                f"labels {labels}; expected 1 for the object, 0 for what is not it, -1 for padding"
            )
        transform, device = self.transform, self.embedding.device
        coords = torch.tensor([points], dtype=torch.float32, device=device)
        box = (
            None
            if box_xyxy is None
            else torch.tensor([box_xyxy], dtype=torch.float32, device=device)
        )
        return Prompts(
            point_coords=transform.apply_coords(coords) if points else None,
            point_labels=torch.tensor([labels], device=device) if labels else None,
            boxes=None if box is None else transform.apply_boxes(box),
            mask_input=None if mask_input is None else mask_input[None, None].to(device),
        )

    def decode(
        self, prompts: Prompts, multimask_output: bool | None
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """(M, s, s) logits and (M,) what the model says of them."""
        with torch.inference_mode():
            output = self.sam.decode(self.embedding, prompts, multimask_output=multimask_output)
        return output.low_res_masks[0].float().cpu(), output.predicted_iou[0].float().cpu().numpy()


def embed(sam: Sam, pixels: Pixels) -> Tensor:
    """(1, C, h, w) embedding of one image, float32, on the model's device."""
    return embed_batch(sam, [pixels])


def embed_batch(sam: Sam, images: Sequence[Pixels], precision: Precision = "fp32") -> Tensor:
    """(B, C, h, w) embeddings of images of any sizes, float32, on the model's device."""
    squares = [
        ResizeLongestSide((image.shape[0], image.shape[1]), sam.config.image_size).apply_image(
            image
        )
        for image in images
    ]
    autocast = torch.autocast(sam.device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), autocast:
        return sam.encode(torch.stack(squares).to(sam.device)).float()
