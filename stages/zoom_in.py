"""A second look at small objects: the crop around them, enlarged to a whole input of its own.

What is small in its image is drawn from few cells of the embedding. Interactive segmentation knows
the remedy as zoom-in (f-BRS, Sofiiuk et al. 2020): what lies around the clicks is cut out and shown
to the model enlarged. Here the model is asked in the whole image first, and an output that fits
into the crop is drawn again there. It costs a second encoding for each such object.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.given import given_logits
from stages.predictor import Answer, Pixels, Predictor, embed
from stages.prompts import Point, mask_iou
from stages.records import Interaction
from stages.rle import Mask
from stages.superpixels import Superpixels

T = TypeVar("T")
BoxXyxy = tuple[float, float, float, float]

# Axes: M outputs, s the side of low-resolution logits.

CROP_SHARE = 1 / 3
"""Side of a crop over the image's longest side. Measured, as is the next (docs/log.md)."""
FITS = 0.98
"""Share of an output's pixels within the crop from which on it is drawn again there."""
BACKGROUND = -10.0
"""Logit of what a crop does not show."""
KNOWN_OUTPUTS = 3
"""`num_multimask_outputs` of the models whose clicks `model/click_scorer.py` can judge."""


@dataclass(frozen=True)
class View:
    """A crop of the image as the model is shown it: a whole input."""

    offset_xy: tuple[int, int]
    """Of its top left pixel, in the image."""
    transform: ResizeLongestSide

    @classmethod
    def around(cls, centre: Point, whole: ResizeLongestSide) -> "View":
        """The crop with a place in its middle, moved to lie in the image."""
        size_hw = whole.size_hw_orig
        longest = max(1, int(max(size_hw) * CROP_SHARE + 0.5))
        height, width = (min(side, longest) for side in size_hw)
        x = min(max(0, int(centre[0] - width / 2 + 0.5)), size_hw[1] - width)
        y = min(max(0, int(centre[1] - height / 2 + 0.5)), size_hw[0] - height)
        return cls((x, y), ResizeLongestSide((height, width), whole.image_size))

    @property
    def pixels_per_cell(self) -> tuple[float, float]:
        """Image pixels along x and y to a cell of the low-resolution logits."""
        (height, width), (rows, columns) = self.transform.size_hw_orig, self.transform.size_hw_input
        return 4 * width / columns, 4 * height / rows

    def cut(self, pixels: Pixels) -> Pixels:
        return np.ascontiguousarray(pixels[self.slices])

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        (x, y), (height, width) = self.offset_xy, self.transform.size_hw_orig
        return slice(y, y + height), slice(x, x + width)

    def holds(self, point: Point) -> bool:
        (x, y), (height, width) = self.offset_xy, self.transform.size_hw_orig
        return x <= point[0] < x + width and y <= point[1] < y + height

    def within(self, point: Point) -> Point:
        """A point of the image in the crop's frame."""
        return point[0] - self.offset_xy[0], point[1] - self.offset_xy[1]

    def fits(self, mask: Mask) -> bool:
        return bool(mask[self.slices].sum() >= FITS * mask.sum())


class ZoomInPredictor(Predictor):
    """Looks twice at what is small. Prompts and answers are in the frame of the whole image."""

    def __init__(self, sam: Sam, pixels: Pixels, embedding: Tensor, *, snap: bool = False) -> None:
        """
        Args:
            embedding: (1, C, h, w) of all of `pixels`, from `embed`.
            snap: make masks of superpixels (`stages/snapped_upscale.py`), those of each look.
        """
        super().__init__(
            sam,
            (pixels.shape[0], pixels.shape[1]),
            embedding,
            superpixels=Superpixels(pixels) if snap else None,
        )
        self._pixels, self._snap = pixels, snap
        self._last: tuple[View, Predictor] | None = None

    def predict(
        self,
        points: tuple[Point, ...] = (),
        labels: tuple[int, ...] = (),
        *,
        box_xyxy: BoxXyxy | None = None,
        mask_input: Tensor | None = None,
        before: Mask | None = None,
        multimask_output: bool,
    ) -> Answer:
        """As `Predictor.predict`. Clicks that take away something outside of the crop have had
        their say in the first look; one that adds something there, or a box that reaches out of
        it, means an object too large for a second look. Further clicks are answered there by the
        model alone, which sees small objects better than their regions tell (docs/log.md). A prompt
        without a place in the image, such as a mask alone, has the first look only.
        """
        far = super().predict(
            points,
            labels,
            box_xyxy=box_xyxy,
            mask_input=mask_input,
            before=before,
            multimask_output=multimask_output,
        )
        if not points and box_xyxy is None:
            return far
        corners = [] if box_xyxy is None else [box_xyxy[:2], box_xyxy[2:]]
        view = View.around(_centre(points, box_xyxy), self.transform)
        fits = [view.fits(mask) for mask in far.masks]
        clicks = list(zip(points, labels, strict=True))
        object_points = [*corners, *(point for point, label in clicks if label == 1)]
        if not any(fits) or not all(map(view.holds, object_points)):
            return far
        if any(far.are_regions) and not view.holds(points[-1]):
            return far  # of what that click has mended the crop shows nothing
        held = [(view.within(point), label) for point, label in clicks if view.holds(point)]
        if not held and not corners:
            return far
        corners = [view.within(corner) for corner in corners]
        whole = View((0, 0), self.transform)
        near = self._look_at(view).predict(
            tuple(point for point, _ in held),
            tuple(label for _, label in held),
            box_xyxy=(*corners[0], *corners[1]) if corners else None,
            mask_input=None if mask_input is None else carry(mask_input[None], whole, view)[0],
            multimask_output=multimask_output,
        )
        return _merged(far, near, fits, view, whole)

    def _look_at(self, view: View) -> Predictor:
        """The last crop is kept: most often the next click is for the same object."""
        if self._last is None or self._last[0] != view:
            pixels = view.cut(self._pixels)
            predictor = Predictor(
                self.sam,
                view.transform.size_hw_orig,
                embed(self.sam, pixels),
                superpixels=Superpixels(pixels) if self._snap else None,
            )
            self._last = view, predictor
        return self._last[1]


def predictor_of(
    sam: Sam, pixels: Pixels, embedding: Tensor, *, zoom_in: bool, snap: bool = False
) -> Predictor:
    """Of an image that is embedded.

    Args:
        zoom_in: look at small objects twice.
        snap: make masks of superpixels (`stages/snapped_upscale.py`).

    Raises:
        ValueError: a model of another number of outputs than the scorer of clicks has learnt.
    """
    if snap and sam.config.num_multimask_outputs != KNOWN_OUTPUTS:
        raise ValueError(
            f"the checkpoint's num_multimask_outputs is {sam.config.num_multimask_outputs}; the "
            f"scorer of clicks knows models of {KNOWN_OUTPUTS}; set snap: false"
        )
    if zoom_in:
        return ZoomInPredictor(sam, pixels, embedding, snap=snap)
    superpixels = Superpixels(pixels) if snap else None
    size_hw = (pixels.shape[0], pixels.shape[1])
    return Predictor(sam, size_hw, embedding, superpixels=superpixels)


def predictors_of_log(
    sam: Sam, pixels: Pixels, embedding: Tensor, *, zoom_in: bool = False, snap: bool = False
) -> Callable[[Interaction], Predictor]:
    """Who answers an action again as it was answered, with a second look or without, with
    superpixels or without.

    Args:
        zoom_in: for logs that do not say; as the run's config does.
        snap: the same of superpixels.
    """

    @cache
    def made(zooms_in: bool, snaps: bool) -> Predictor:
        return predictor_of(sam, pixels, embedding, zoom_in=zooms_in, snap=snaps)

    def as_logged(action: Interaction) -> Predictor:
        return made(
            zoom_in if action.zoomed_in is None else action.zoomed_in,
            snap if action.snapped is None else action.snapped,
        )

    return as_logged


def _centre(points: tuple[Point, ...], box_xyxy: BoxXyxy | None) -> Point:
    """Of the object, as far as its first prompt tells."""
    if box_xyxy is None:
        return points[0]
    x0, y0, x1, y1 = box_xyxy
    return (x0 + x1) / 2, (y0 + y1) / 2


def carry(low_res_masks: Tensor, source: View, target: View) -> Tensor:
    """(M, s, s) logits seen in one crop, as they are seen in another; beyond it is background.

    A cell is the mean of 4 x 4 places in it, so thin lines survive in a crop that shows more.
    """
    side, samples = low_res_masks.shape[-1], 4
    cells = (torch.arange(side * samples) + 0.5) / samples
    places = []
    for axis in (0, 1):  # x, y
        pixels = cells * target.pixels_per_cell[axis] + target.offset_xy[axis]
        source_cells = (pixels - source.offset_xy[axis]) / source.pixels_per_cell[axis]
        places.append(2 * source_cells / side - 1)
    grid = torch.stack(torch.meshgrid(*places, indexing="xy"), dim=-1)[None]
    # What is half a cell from the edge has no neighbour to be mixed with, and is no background.
    sampled = F.grid_sample(
        low_res_masks[None], grid, align_corners=False, padding_mode="border"
    ).where((grid.abs() <= 1).all(dim=-1), BACKGROUND)
    return F.avg_pool2d(sampled, samples)[0]


def _merged(far: Answer, near: Answer, fits: list[bool], view: View, whole: View) -> Answer:
    """The first look's answer, with each mask that fits the crop as it was drawn there."""
    placed = [np.zeros_like(far.masks[0]) for _ in near.masks]
    for mask, of_crop in zip(placed, near.masks, strict=True):
        mask[view.slices] = of_crop
    carried = list(carry(near.low_res_masks, view, whole))
    for one in np.flatnonzero(near.are_regions):
        carried[one] = given_logits(placed[one], whole.transform)
    drawn = _drawn_again(far, placed, fits)

    def merged(of_far: Iterable[T], of_near: Sequence[T]) -> tuple[T, ...]:
        return tuple(
            one if again is None else of_near[again]
            for one, again in zip(of_far, drawn, strict=True)
        )

    return Answer(
        masks=merged(far.masks, placed),
        predicted_iou=merged(far.predicted_iou, near.predicted_iou),
        stability_score=merged(far.stability_score, near.stability_score),
        low_res_masks=torch.stack(merged(far.low_res_masks, carried)),
        are_regions=merged(far.are_regions, near.are_regions),
        snapped=far.snapped,
        zoomed_in=True,
    )


def _drawn_again(far: Answer, near: Sequence[Mask], fits: list[bool]) -> list[int | None]:
    """Which mask of the second look each of the first one's is, None where it stands. The model's
    outputs are known by their number; masks made of superpixels go by likeness, each once."""
    if not far.snapped:
        return [number if fit else None for number, fit in enumerate(fits)]
    drawn: list[int | None] = [None] * len(fits)
    left = list(range(len(near)))
    for one in np.flatnonzero(fits):
        likeness = [mask_iou(far.masks[one], near[other]) for other in left]
        drawn[one] = left.pop(int(np.argmax(likeness)))
    return drawn
