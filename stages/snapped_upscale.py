"""Masks whose edges are those of the image: an answer is laid on its superpixels.

A model that has seen little knows roughly where an object is and badly where it ends; edges and
colours know the reverse. Each superpixel takes the mean of the model's probabilities in it, and
what lies in the object by the mean over all segmentations is the mask. Where fine and coarse
regions agree with it, and where edges alone would make nearly the same region, it most often is an
object: this agreement stands for the stability score, and has a say in the predicted IoU. A scorer
that was taught what people draw (`model/mask_scorer.py`) may have it alone; clicks may mean
regions that the model has not seen, too (`stages/click_answers.py`). Measured in docs/log.md.
"""

# Axes: N masks, A atoms, K segmentations, s the side of logits, (H, W) work frame.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from torch import Tensor

from model.transforms import ResizeLongestSide
from stages.click_answers import Candidates, Clicked
from stages.prompts import Point
from stages.rle import Mask
from stages.superpixels import Agreements, Superpixels
from stages.unions import Values
from stages.windows import Axis, Scores, Window, filled, trimmed

MARGIN = 2
"""Work frame pixels around a mask that enlarging it looks at."""
HALF = 125
"""Of 255, what an enlarged pixel must have more of to lie in the mask. A little less than one half:
where sizes have a simple ratio many pixels have that, and rounding decides of each."""


class Offered(NamedTuple):
    """N masks for a click, largest first."""

    masks: tuple[Mask, ...]
    """(H, W) of the image."""
    outputs: tuple[int | None, ...]
    """Which of the model's outputs each is made of; None: it is made with a union."""
    scores: Scores


class SnappedUpscale:
    """Low-resolution logits to masks made of superpixels; stands where `WindowedUpscale` stands."""

    def __init__(self, transform: ResizeLongestSide, superpixels: Superpixels) -> None:
        if superpixels.size_hw != transform.size_hw_orig:
            raise ValueError(
                f"superpixels of an image of {superpixels.size_hw} pixels; expected "
                f"{transform.size_hw_orig}"
            )
        self._superpixels = superpixels
        self._size_hw = transform.size_hw_orig
        low_res, square = transform.image_size // 4, transform.image_size
        rows, columns = (
            Axis(low_res, square, size_input, size_work)
            for size_input, size_work in zip(
                transform.size_hw_input, superpixels.atoms.shape, strict=True
            )
        )
        self._num_cells = rows.num_cells, columns.num_cells
        atoms, areas = superpixels.atoms.ravel(), superpixels.areas
        pixels = np.arange(len(atoms))
        mean = sparse.csr_array((1 / areas[atoms], (atoms, pixels)), (len(areas), len(atoms)))
        upscale = sparse.kron(rows.matrix.numpy(), columns.matrix.numpy(), format="csr")
        self._atom_means = mean @ upscale
        """(A, cells): the mean over each atom of what the cells are enlarged to."""

    def scores(
        self,
        low_res_masks: Tensor,
        of_head: NDArray[np.float32],
        *,
        threshold: float,
        offset: float,
    ) -> Scores:
        """The stability is how well the single segmentations agree with the mask that they make
        together, their mean IoU with it, times its IoU with the union of superpixels most like it.

        Args:
            low_res_masks: (N, s, s) logits, float32, on the CPU.
            of_head: (N,) what the model says of its masks.
            offset: without meaning here.
        """
        found = self._agreements(low_res_masks, threshold)
        agreement, scorer = found.product, self._superpixels.scorer
        if scorer is None:
            return Scores(agreement, self.weighed(of_head, agreement))
        worth = scorer.predicted_iou(self._features(found))
        return Scores(agreement, np.where(np.isnan(agreement), np.float32(0), worth))

    def features(self, low_res_masks: Tensor, *, threshold: float) -> tuple[Values, Values]:
        """(N, F) what a scorer is told of masks (N, s, s), and (N,) their agreement."""
        found = self._agreements(low_res_masks, threshold)
        return self._features(found), found.product

    def clicked(
        self, points: Sequence[Point], labels: Sequence[int], before: Mask | None
    ) -> Clicked:
        """
        Args:
            points: (x, y) in the image's frame.
            before: (H, W) of the image that the last click corrects; None: there is none yet.
        """
        superpixels = self._superpixels
        places = tuple(self._in_work_frame(point) for point in points)
        inside = np.zeros(len(superpixels.areas), dtype=np.bool_)
        if before is not None:
            inside = 2 * superpixels.pixels_of(before) > superpixels.areas
            x, y = places[-1]
            inside[superpixels.atoms[y, x]] = not labels[-1]  # which is what is to be mended
        return Clicked(places, tuple(labels), inside)

    def candidates(
        self,
        low_res_masks: Tensor,
        of_head: NDArray[np.float32],
        clicked: Clicked,
        *,
        threshold: float,
    ) -> Candidates:
        """All that somebody may mean by the last of some clicks.

        Args:
            low_res_masks: (K, s, s) logits of the model's outputs, float32, on the CPU.
            of_head: (K,) what it says of them.
        """
        agreements = self._agreements(low_res_masks, threshold)
        return Candidates(self._superpixels, agreements, of_head, clicked)

    def offered(self, candidates: Candidates, before: Mask | None, number: int) -> Offered:
        """What is meant most likely, so many masks.

        Args:
            before: (H, W) as `clicked` was told it. What is finer in it than atoms stays as it is
                where regions change nothing.
        """
        found, superpixels = candidates.likeliest(number), self._superpixels
        levels = superpixels.smoothed(found.masks.astype(np.float64) - 0.5)
        of_unions = superpixels.agreements(found.masks, levels).product
        stability = [
            of_unions[one] if output is None else candidates.outputs.product[output]
            for one, output in enumerate(found.outputs)
        ]
        masks = tuple(self.in_image(mask) for mask in found.masks.T)
        if before is not None:
            source = self.in_image(candidates.clicked.before)
            masks = tuple(
                _changed_alike(before, source, mask) if output is None else mask
                for mask, output in zip(masks, found.outputs, strict=True)
            )
        return Offered(
            masks,
            found.outputs,
            Scores(np.array(stability), found.predicted_iou),
        )

    def _in_work_frame(self, point: Point) -> tuple[int, int]:
        x, y = (
            min(max(int((place + 0.5) * size_work / size), 0), size_work - 1)
            for place, size_work, size in zip(
                point, self._superpixels.atoms.shape[::-1], self._size_hw[::-1], strict=True
            )
        )
        return x, y

    def _agreements(self, low_res_masks: Tensor, threshold: float) -> Agreements:
        levels = self._levels(low_res_masks, threshold)
        return self._superpixels.agreements(np.mean(levels, axis=0) > 0, levels)

    def _features(self, found: Agreements) -> Values:
        looks = self._superpixels.looks
        if looks is None:
            raise ValueError("these superpixels were made without a scorer of masks")
        agreements = found.of_unions[None], found.of_segmentations
        return np.concatenate((looks.of(found.masks), *agreements)).T

    def weighed(
        self, of_head: NDArray[np.float32], agreement: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """(N,) the weighted geometric mean of what the model says of its own masks and the
        agreement."""
        trust = self._superpixels.trust_in_head
        head = np.clip(of_head, 0, 1).astype(np.float64)
        worth: NDArray[np.float64] = head**trust * np.nan_to_num(agreement) ** (1 - trust)
        return worth.astype(np.float32)

    def least_of_head(self, pred_iou_thresh: float) -> float:
        """What the model must say at least where a mask is to be worth more than a threshold."""
        if pred_iou_thresh < 0 or self._superpixels.scorer is not None:
            return -np.inf
        return float(pred_iou_thresh ** (1 / self._superpixels.trust_in_head))

    def mask(self, low_res_mask: Tensor, *, threshold: float) -> Window | None:
        """The mask of logits (s, s) above the threshold; None when it is empty."""
        levels = self._levels(low_res_mask[None], threshold)
        return self._enlarged(np.mean(levels, axis=0)[:, 0] > 0)

    def _levels(self, low_res_masks: Tensor, threshold: float) -> list[Values]:
        """K times (A, N): the model's probabilities over one half, by each segmentation."""
        rows, columns = self._num_cells
        logits = low_res_masks[:, :rows, :columns].flatten(1) - threshold
        chances = logits.sigmoid().T.numpy().astype(np.float64) - 0.5
        return self._superpixels.smoothed(self._atom_means @ chances)

    def in_image(self, of_atoms: Mask) -> Mask:
        """A mask (A,) as one (H, W)."""
        return filled(self._enlarged(of_atoms), self._size_hw)

    def _enlarged(self, of_atoms: Mask) -> Window | None:
        mask = of_atoms[self._superpixels.atoms]
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(ys) == 0:
            return None
        spans = []
        for found, size_work, size in zip(
            (xs, ys), mask.shape[::-1], self._size_hw[::-1], strict=True
        ):
            first = max(0, int((found[0] - MARGIN) * size / size_work))
            last = min(size, int((found[-1] + 1 + MARGIN) * size / size_work) + 1)
            spans.append((first, last, size_work / size))
        (x0, x1, scale_x), (y0, y1, scale_y) = spans
        drawn = Image.fromarray(mask.astype(np.uint8) * 255).resize(
            (x1 - x0, y1 - y0),
            Image.Resampling.BILINEAR,
            box=(x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y),
        )
        return trimmed(np.asfortranarray(np.asarray(drawn) > HALF), (x0, y0))


def _changed_alike(mask: Mask, source: Mask, target: Mask) -> Mask:
    """A mask changed where `target` differs from `source`, which is nearly that mask."""
    changed: Mask = (mask | (target & ~source)) & ~(source & ~target)
    return changed
