"""Stage one: an annotator and the model make one mask together.

A MaskSession is the whole method for one mask: each click or box is answered by the model, which is
also shown its own previous answer; brush and eraser have the last word, over answers to come too.
Every action and every answer is kept, so the log replays to the same mask (`replay`).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from pydantic import PositiveFloat

from stages.base import Provenance
from stages.filters import mask_box
from stages.predictor import Answer, Predictor
from stages.prompts import Point
from stages.records import Interaction, MaskRecord, Record, Rle, Source, StageName
from stages.rle import Mask, decode_rle, encode_rle, rle_area, rle_bbox

Choose = Callable[[Answer], int]
"""Which of the outputs is meant: whole, part or subpart."""


class AssistedManualConfig(Record):
    max_mask_seconds: PositiveFloat = 30.0
    """A mask that took longer is the last of its image (section 4 of the paper); the mask stays."""


def _output(index: int, _answer: Answer) -> int:
    return index


def most_confident(answer: Answer) -> int:
    return answer.best


class MaskSession:
    """One mask in the making."""

    def __init__(self, predictor: Predictor) -> None:
        self.mask: Mask = np.zeros(predictor.size_hw, dtype=bool)
        self.interactions: list[Interaction] = []
        self.seconds = 0.0
        """Active time so far; waiting between actions is for the caller to add."""
        self.predictor = predictor
        """Who is asked next."""
        self._points: list[Point] = []
        self._labels: list[int] = []
        self._box: tuple[float, float, float, float] | None = None
        self._answer: Answer | None = None
        self._chosen = 0
        self._painted = np.zeros_like(self.mask)
        self._erased = np.zeros_like(self.mask)

    def click(
        self, point: Point, label: int, *, seconds: float, choose: Choose = most_confident
    ) -> Answer:
        self._points.append(point)
        self._labels.append(label)
        return self._ask("point", point, label, seconds, choose)

    def drag_box(
        self,
        box_xyxy: tuple[float, float, float, float],
        *,
        seconds: float,
        choose: Choose = most_confident,
    ) -> Answer:
        self._box = box_xyxy
        return self._ask("box", box_xyxy, 1, seconds, choose)

    def brush(self, region: Mask, label: int, *, seconds: float) -> None:
        """Paint (1) or erase (0) a region, without asking the model."""
        if not region.any():
            raise ValueError("a brush stroke touches no pixel; expected at least one")
        if label:
            self._painted, self._erased = self._painted | region, self._erased & ~region
        else:
            self._painted, self._erased = self._painted & ~region, self._erased | region
        self.mask = self._with_strokes(self.mask)
        coords = tuple(float(value) for value in mask_box(region))
        self._log("brush", coords, label, seconds, predicted_iou=None, stroke=encode_rle(region))

    def record(
        self, mask_id: int, stage: StageName, annotator: str, provenance: Provenance
    ) -> MaskRecord:
        if self._answer is None:
            raise ValueError("a mask without a single click or box cannot be recorded")
        rle = encode_rle(self.mask)
        height, width = self.mask.shape
        return MaskRecord(
            id=mask_id,
            segmentation=rle,
            bbox=rle_bbox(rle),
            area=rle_area(rle),
            predicted_iou=self._answer.predicted_iou[self._chosen],
            stability_score=self._answer.stability_score[self._chosen],
            crop_box=(0.0, 0.0, float(width), float(height)),
            point_coords=tuple(self._points),
            stage=stage,
            round=provenance.round,
            source=Source.ANNOTATED,
            annotator=annotator,
            seconds=self.seconds,
            num_clicks=sum(action.kind != "brush" for action in self.interactions),
            checkpoint=provenance.checkpoint,
            interactions=tuple(self.interactions),
        )

    def _ask(
        self, kind: str, coords: Sequence[float], label: int, seconds: float, choose: Choose
    ) -> Answer:
        """One point is ambiguous and gets three masks; all later prompts get one."""
        previous = self._answer
        answer = self.predictor.predict(
            tuple(self._points),
            tuple(self._labels),
            box_xyxy=self._box,
            mask_input=None if previous is None else previous.low_res_masks[self._chosen],
            before=None if previous is None or kind != "point" else self.mask,
            multimask_output=previous is None and self._box is None,
        )
        self._chosen = choose(answer) if len(answer.masks) > 1 else 0
        self._answer = answer
        self.mask = self._with_strokes(answer.masks[self._chosen])
        self._log(
            kind,
            coords,
            label,
            seconds,
            predicted_iou=answer.predicted_iou[self._chosen],
            snapped=answer.snapped,
            zoomed_in=answer.zoomed_in,
        )
        return answer

    def _with_strokes(self, mask: Mask) -> Mask:
        return (mask | self._painted) & ~self._erased

    def _log(
        self,
        kind: str,
        coords: Sequence[float],
        label: int,
        seconds: float,
        predicted_iou: float | None,
        stroke: Rle | None = None,
        snapped: bool | None = None,
        zoomed_in: bool | None = None,
    ) -> None:
        self.seconds += seconds
        self.interactions.append(
            Interaction.model_validate(
                {
                    "kind": kind,
                    "coords": tuple(coords),
                    "label": label,
                    "output": None if kind == "brush" else self._chosen,
                    "seconds": seconds,
                    "predicted_iou": predicted_iou,
                    "answer": encode_rle(self.mask),
                    "stroke": stroke,
                    "snapped": snapped,
                    "zoomed_in": zoomed_in,
                }
            )
        )


def replay(asked: Callable[[Interaction], Predictor], interactions: Sequence[Interaction]) -> Mask:
    """The mask that a log leads to.

    Args:
        asked: who answers an action again, with the checkpoint that answered it: of an image
            `predictors_of_log` (`stages/zoom_in.py`).
        interactions: at least one.
    """
    session = MaskSession(asked(interactions[0]))
    for action in interactions:
        session.predictor = asked(action)
        output = action.output or 0
        if action.kind == "point":
            x, y = action.coords
            session.click((x, y), action.label, seconds=0, choose=partial(_output, output))
        elif action.kind == "box":
            x0, y0, x1, y1 = action.coords
            session.drag_box((x0, y0, x1, y1), seconds=0)
        elif action.stroke is not None:
            session.brush(decode_rle(action.stroke), action.label, seconds=0)
    return session.mask
