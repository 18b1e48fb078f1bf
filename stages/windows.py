"""Masks at full resolution, one window at a time.

The decoder answers at a quarter of its input; SAM enlarges that bilinearly to the padded input
square, cuts the padding off, and enlarges once more to the image. Both steps are linear along each
axis, so together they are one matrix per axis, and any window of the result is some rows of each:
`rows @ low_res @ columns.T`. A pixel whose low-resolution neighbours are all below a level stays
below it, so a mask is computed only around the cells above the level. Nothing is approximated, and
of a 2250x1500 photograph only a strip of logits is ever held, small enough for a core's cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.transforms import ResizeLongestSide
from stages.rle import Mask

# Axes: N masks, (h, w) a window, s the side of the low-resolution logits.

STRIP_PIXELS = 1 << 17


@dataclass(frozen=True)
class Window:
    """The part of a mask that is not empty; everything outside is background."""

    mask: Mask
    """(h, w), laid out by columns as RLE runs."""
    offset_xy: tuple[int, int]
    """Of the top left pixel, in the frame of the image that was embedded."""


def trimmed(mask: Mask, offset_xy: tuple[int, int]) -> Window | None:
    """What is not empty of a mask (h, w) that lies there; None when all is."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return None
    (left, right), (top, bottom) = columns[[0, -1]], rows[[0, -1]]
    found = mask[top : bottom + 1, left : right + 1]
    return Window(found, (offset_xy[0] + int(left), offset_xy[1] + int(top)))


def filled(window: Window | None, size_hw: tuple[int, int]) -> Mask:
    """The whole mask (H, W)."""
    mask = np.zeros(size_hw, dtype=np.bool_)
    if window is not None:
        (x, y), (h, w) = window.offset_xy, window.mask.shape
        mask[y : y + h, x : x + w] = window.mask
    return mask


class Axis:
    """Both bilinear steps along one axis."""

    def __init__(self, low_res: int, padded: int, size_input: int, size_orig: int) -> None:
        square = _enlarged(torch.eye(low_res), padded)[:, :size_input]
        matrix = _enlarged(square, size_orig).T
        weights = matrix.numpy() != 0
        self.num_cells = int(np.flatnonzero(weights.any(axis=0))[-1]) + 1
        """Cells further on lie in the padding."""
        self.matrix = matrix[:, : self.num_cells].contiguous()
        """(size_orig, cells)"""
        self._first_cell = weights.argmax(axis=1)
        self._last_cell = weights.shape[1] - 1 - weights[:, ::-1].argmax(axis=1)

    def pixels(self, first_cell: int, last_cell: int) -> tuple[int, int]:
        """[start, stop) of the pixels that read any of these cells."""
        start = np.searchsorted(self._last_cell, first_cell)
        stop = np.searchsorted(self._first_cell, last_cell, side="right")
        return int(start), int(stop)

    def cells(self, start: int, stop: int) -> slice:
        """The cells that these pixels read."""
        return slice(int(self._first_cell[start]), int(self._last_cell[stop - 1]) + 1)


class Scores(NamedTuple):
    """Of N masks."""

    stability: NDArray[np.float64]
    """(N,) nan where the mask is empty."""
    predicted_iou: NDArray[np.float32]
    """(N,)"""


class WindowedUpscale:
    """Low-resolution logits to masks in the frame of the embedded image."""

    def __init__(self, transform: ResizeLongestSide) -> None:
        low_res, square = transform.image_size // 4, transform.image_size
        (h, w), (height, width) = transform.size_hw_input, transform.size_hw_orig
        self._rows = Axis(low_res, square, h, height)
        self._columns = Axis(low_res, square, w, width)

    def stability(
        self, low_res_masks: Tensor, *, threshold: float, offset: float
    ) -> NDArray[np.float64]:
        """(N,) IoU of each mask cut at +offset and at -offset; nan where both are empty.

        Args:
            low_res_masks: (N, s, s) logits, float32, on the CPU.
        """
        scores = np.full(len(low_res_masks), np.nan)
        for index, window in enumerate(self._windows(low_res_masks, threshold - offset)):
            inner = outer = 0
            for _, strip in self._strips(low_res_masks[index], window):
                inner += int(np.count_nonzero(strip > threshold + offset))
                outer += int(np.count_nonzero(strip > threshold - offset))
            if outer:
                scores[index] = inner / outer
        return scores

    def scores(
        self,
        low_res_masks: Tensor,
        of_head: NDArray[np.float32],
        *,
        threshold: float,
        offset: float,
    ) -> Scores:
        """Of masks (N, s, s) whose IoU the model predicts as (N,); that stands."""
        return Scores(
            self.stability(low_res_masks, threshold=threshold, offset=offset), predicted_iou=of_head
        )

    def least_of_head(self, pred_iou_thresh: float) -> float:
        """What the model must say at least where a mask is to be worth more than a threshold."""
        return pred_iou_thresh

    def mask(self, low_res_mask: Tensor, *, threshold: float) -> Window | None:
        """The mask of logits (s, s) above the threshold; None when it is empty."""
        (window,) = self._windows(low_res_mask[None], threshold)
        x0, y0, x1, y1 = window
        by_columns = np.empty((max(x1 - x0, 0), max(y1 - y0, 0)), dtype=bool)
        for x, strip in self._strips(low_res_mask, window):
            np.greater(strip, threshold, out=by_columns[x - x0 : x - x0 + len(strip)])
        return trimmed(by_columns.T, (x0, y0))

    def _windows(self, low_res_masks: Tensor, level: float) -> Iterator[tuple[int, int, int, int]]:
        """For each mask the xyxy, ends exclusive, outside of which no pixel is above the level."""
        rows, columns = self._rows, self._columns
        logits = low_res_masks[:, : rows.num_cells, : columns.num_cells].numpy()
        above: Mask = np.asarray(logits > level)
        in_rows, in_columns = np.asarray(above.any(axis=2)), np.asarray(above.any(axis=1))
        for in_row, in_column in zip(in_rows, in_columns, strict=True):
            ys, xs = np.flatnonzero(in_row), np.flatnonzero(in_column)
            if len(ys) == 0:
                yield 0, 0, 0, 0
                continue
            (y0, y1), (x0, x1) = rows.pixels(ys[0], ys[-1]), columns.pixels(xs[0], xs[-1])
            yield x0, y0, x1, y1

    def _strips(
        self, low_res_mask: Tensor, window_xyxy: tuple[int, int, int, int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Some columns after the other: x of the first, and their logits (columns, h)."""
        x0, y0, x1, y1 = window_xyxy
        if x1 <= x0 or y1 <= y0:
            return
        cells = self._rows.cells(y0, y1)
        by_cell = (
            low_res_mask[cells, : self._columns.num_cells].T @ self._rows.matrix[y0:y1, cells].T
        )
        width = max(STRIP_PIXELS // (y1 - y0), 1)
        for x in range(x0, x1, width):
            stop = min(x + width, x1)
            cells = self._columns.cells(x, stop)
            yield x, (self._columns.matrix[x:stop, cells] @ by_cell[cells]).numpy()


def _enlarged(rows: Tensor, size: int) -> Tensor:
    """(N, n) -> (N, size): bilinear interpolation with half-pixel centres, each row by itself."""
    return torch.nn.functional.interpolate(rows[None], size, mode="linear", align_corners=False)[0]
