"""How good a checkpoint is: clicks against true masks (SAM, Appendix D), and the detector's recall.

The first click is at the maximum of the mask's distance transform, each next one at the centre of
the largest error region. Scores add up, so images may be evaluated anywhere, in any order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.assisted_manual import MaskSession
from stages.predictor import Predictor
from stages.prompts import centre_click, error_region, mask_iou
from stages.records import Record
from stages.rle import Mask

CLICKS = (1, 3, 5)


class ClickScores(Record):
    """Sums over masks; add them with +, read them with `means`."""

    num_images: int = 0
    num_masks: int = 0
    iou_1_click: float = 0.0
    """Of the output of highest predicted IoU."""
    iou_1_click_oracle: float = 0.0
    """Of the best of the three outputs."""
    iou_3_clicks: float = 0.0
    iou_5_clicks: float = 0.0
    iou_head_error: float = 0.0
    """|predicted - actual IoU| of the first click's three outputs, averaged."""
    iou_head_error_5_clicks: float = 0.0
    """The same of the one output after five clicks."""

    def __add__(self, other: "ClickScores") -> "ClickScores":
        mine, theirs = self.model_dump(), other.model_dump()
        return ClickScores(**{name: mine[name] + theirs[name] for name in mine})

    def means(self) -> "Evaluation":
        if self.num_masks == 0:
            raise ValueError(
                f"nothing to evaluate: {self.num_images} images with no mask between them; "
                "check the split and the filters"
            )
        return Evaluation(
            num_images=self.num_images,
            num_masks=self.num_masks,
            miou_1_click=self.iou_1_click / self.num_masks,
            miou_1_click_oracle=self.iou_1_click_oracle / self.num_masks,
            miou_3_clicks=self.iou_3_clicks / self.num_masks,
            miou_5_clicks=self.iou_5_clicks / self.num_masks,
            iou_head_error=self.iou_head_error / self.num_masks,
            iou_head_error_5_clicks=self.iou_head_error_5_clicks / self.num_masks,
        )


class Evaluation(Record):
    num_images: int
    num_masks: int
    miou_1_click: float
    miou_1_click_oracle: float
    miou_3_clicks: float
    miou_5_clicks: float
    iou_head_error: float
    iou_head_error_5_clicks: float | None = None
    """None: evaluated by a version that did not measure it."""


def evaluate_image(predictor: Predictor, truths: Sequence[Mask]) -> ClickScores:
    """Scores of one image; `truths` are (H, W) masks in its frame, empty ones left out."""
    scores = ClickScores(num_images=1)
    for truth in truths:
        if truth.any():
            scores += _evaluate_mask(predictor, truth)
    return scores


def _evaluate_mask(predictor: Predictor, truth: Mask) -> ClickScores:
    session = MaskSession(predictor)
    first = session.click(centre_click(truth), 1, seconds=0)
    outputs = [mask_iou(mask, truth) for mask in first.masks]
    after, answer = {1: outputs[first.best]}, first
    for clicks in range(2, max(CLICKS) + 1):
        error = error_region(session.mask, truth)
        if error is not None:
            region, label = error
            answer = session.click(centre_click(region), label, seconds=0)
        after[clicks] = mask_iou(session.mask, truth)
    head_errors = np.abs(np.asarray(first.predicted_iou) - np.asarray(outputs))
    return ClickScores(
        num_masks=1,
        iou_1_click=after[1],
        iou_1_click_oracle=max(outputs),
        iou_3_clicks=after[3],
        iou_5_clicks=after[5],
        iou_head_error=float(head_errors.mean()),
        iou_head_error_5_clicks=abs(answer.predicted_iou[answer.best] - after[5]),
    )


def box_recall(
    proposals_xyxy: NDArray[np.float32],
    truths_xyxy: NDArray[np.float32],
    iou_threshold: float = 0.5,
) -> tuple[int, int]:
    """How many of the true boxes some proposal meets at an IoU, and how many there are."""
    if len(truths_xyxy) == 0 or len(proposals_xyxy) == 0:
        return 0, len(truths_xyxy)
    a, b = truths_xyxy[:, None].astype(np.float64), proposals_xyxy[None].astype(np.float64)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clip(min=0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    iou = overlap / np.maximum(areas[0] + areas[1] - overlap, 1e-9)
    return int((iou.max(axis=1) >= iou_threshold).sum()), len(truths_xyxy)
