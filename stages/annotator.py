"""The simulated annotator: a person who knows the true masks and works with a clock.

Objects come in order of prominence. The first click goes to the object's centre (or a box around
it), corrective clicks to the centre of the largest error, until the mask is good enough, there
have been enough clicks, they have ceased to help, or time is up; then brush strokes mend the
largest errors. SAM 2's clock: 1 s to find an object and 1.5 s a click. What the papers do not give
(marked "ours") is a guess of ours.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stages.assisted_manual import MaskSession
from stages.base import Provenance
from stages.filters import mask_box
from stages.predictor import Answer, Predictor
from stages.prompts import centre_click, error_region, mask_iou
from stages.records import MaskRecord, Record, StageName, Submission
from stages.rle import Mask


class SimulatedAnnotatorConfig(Record):
    name: str = "simulated"
    target_iou: float = Field(default=0.9, gt=0, le=1)
    """A mask this close to the truth is accepted. Ours."""
    find_seconds: NonNegativeFloat = 1.0
    """To find the next object."""
    click_seconds: NonNegativeFloat = 1.5
    box_seconds: NonNegativeFloat = 3.0
    """A box is two clicks."""
    box_share: float = Field(default=0.25, ge=0, le=1)
    """Share of masks begun by a box instead of a click. Ours."""
    max_clicks: NonNegativeInt = 10
    """Clicks on one mask before the brush is taken up. Ours."""
    patience: NonNegativeInt = 2
    """So many clicks in a row that did not help, and the brush is taken up. Ours."""
    helpful_gain: float = Field(default=0.02, ge=0, le=1)
    """A click has helped when the mask is better than ever before by so much IoU. Ours."""
    stroke_seconds: NonNegativeFloat = 2.0
    """To place one brush stroke. Ours."""
    brush_pixels_per_second: PositiveFloat = 100.0
    """Speed along a stroke, whose length is taken as the root of the area it mends. Ours."""
    max_strokes: NonNegativeInt = 8
    """Brush strokes on one mask. Ours."""
    min_iou: float = Field(default=0.5, ge=0, le=1)
    """A mask that ends below is thrown away: no person would hand it in. Ours."""
    covered_iou: float = Field(default=0.75, ge=0, le=1)
    """An object is done when a prefilled mask is at least this close to it. Ours."""
    min_object_area: PositiveInt = 64
    """Pixels; smaller objects are not looked for. Ours."""
    max_objects: NonNegativeInt | None = None
    """Per image. None: all."""


class SimulatedAnnotator:
    def __init__(self, config: SimulatedAnnotatorConfig, *, max_mask_seconds: float) -> None:
        """
        Args:
            max_mask_seconds: a mask that took longer is the last of its image.
        """
        self.config = config
        self._max_mask_seconds = max_mask_seconds

    def annotate(
        self,
        predictor: Predictor,
        truths: Sequence[Mask],
        *,
        prefilled: Sequence[Mask] = (),
        stage: StageName,
        provenance: Provenance,
        rng: np.random.Generator,
    ) -> Submission:
        """Draw what is missing in one image.

        Args:
            truths: the objects of the image, (H, W) each, in any order.
            prefilled: locked masks that need no drawing.
        """
        masks: list[MaskRecord] = []
        seconds = 0.0
        for truth in self._missing(truths, prefilled):
            session = self._draw(
                predictor, truth, begin_with_box=rng.random() < self.config.box_share
            )
            seconds += session.seconds
            if mask_iou(session.mask, truth) >= self.config.min_iou:
                masks.append(session.record(len(masks), stage, self.config.name, provenance))
            if session.seconds > self._max_mask_seconds:
                break
        return Submission(masks=tuple(masks), seconds=seconds)

    def _missing(self, truths: Sequence[Mask], prefilled: Sequence[Mask]) -> list[Mask]:
        """Uncovered objects, the most prominent (largest) first."""
        config = self.config
        missing = [
            truth
            for truth in truths
            if truth.sum() >= config.min_object_area
            and all(mask_iou(truth, mask) < config.covered_iou for mask in prefilled)
        ]
        return sorted(missing, key=lambda truth: -int(truth.sum()))[: config.max_objects]

    def _draw(self, predictor: Predictor, truth: Mask, *, begin_with_box: bool) -> MaskSession:
        config = self.config
        session = MaskSession(predictor)
        session.seconds = config.find_seconds

        def closest_output(answer: Answer) -> int:
            return int(np.argmax([mask_iou(mask, truth) for mask in answer.masks]))

        if begin_with_box:
            x0, y0, x1, y1 = mask_box(truth)
            session.drag_box((x0, y0, x1, y1), seconds=config.box_seconds)
        else:
            session.click(
                centre_click(truth), 1, seconds=config.click_seconds, choose=closest_output
            )
        self._correct_by_clicks(session, truth)
        self._correct_by_brush(session, truth)
        return session

    def _correct_by_clicks(self, session: MaskSession, truth: Mask) -> None:
        config = self.config
        reached = best = mask_iou(session.mask, truth)
        in_vain = 0
        while (
            reached < config.target_iou
            and len(session.interactions) < config.max_clicks
            and in_vain < config.patience
            and session.seconds + config.click_seconds <= self._max_mask_seconds
        ):
            error = error_region(session.mask, truth)
            if error is None:
                return
            region, label = error
            session.click(centre_click(region), label, seconds=config.click_seconds)
            reached = mask_iou(session.mask, truth)
            in_vain = 0 if reached >= best + config.helpful_gain else in_vain + 1
            best = max(best, reached)

    def _correct_by_brush(self, session: MaskSession, truth: Mask) -> None:
        config = self.config
        for _ in range(config.max_strokes):
            error = error_region(session.mask, truth)
            if error is None or mask_iou(session.mask, truth) >= config.target_iou:
                return
            region, label = error
            length = float(np.sqrt(region.sum()))
            cost = config.stroke_seconds + length / config.brush_pixels_per_second
            session.brush(region, label, seconds=cost)
