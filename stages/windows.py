"""Masks at full resolution, one window at a time.

The decoder answers at a quarter of its input; SAM enlarges that bilinearly to the padded input
square, cuts the padding off, and enlarges once more to the image. Both steps are linear along each
axis, so together they are one matrix per axis, and any window of the result is some rows of each:
`rows @ low_res @ columns.T`. A pixel whose low-resolution neighbours are all below a level stays
below it, so a mask is computed only around the cells above the level. Nothing is approximated, and
a 2250x1500 photograph never holds more than one full-size mask.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.transforms import ResizeLongestSide
from stages.rle import Mask


@dataclass(frozen=True)
class Window:
    """The part of a mask's logits that may exceed a level; everything outside is below it."""

    logits: Tensor
    """(h, w), unthresholded."""
    offset_xy: tuple[int, int]
    """Of the top left pixel, in the frame of the image that was embedded."""

    def mask(self, threshold: float) -> Mask:
        return np.asarray((self.logits > threshold).numpy())

    def stability(self, threshold: float, offset: float) -> float:
        """IoU of the mask cut at +offset and at -offset; 0 for an empty mask."""
        inner = int((self.logits > threshold + offset).sum())
        outer = int((self.logits > threshold - offset).sum())
        return inner / outer if outer else 0.0


class WindowedUpscale:
    """Low-resolution logits to windows in the frame of the embedded image."""

    def __init__(self, transform: ResizeLongestSide) -> None:
        low_res = transform.image_size // 4
        height, width = transform.size_hw_orig
        height_input, width_input = transform.size_hw_input
        self._rows = _axis_matrix(low_res, transform.image_size, height_input, height)
        self._columns = _axis_matrix(low_res, transform.image_size, width_input, width)

    def window(self, low_res_mask: Tensor, *, level: float) -> Window | None:
        """The window that holds all pixels above a level; None when there is none.

        Args:
            low_res_mask: (S/4, S/4) logits of one mask, float32.
        """
        above = low_res_mask > level
        rows = self._reach(self._rows, above.any(dim=1))
        columns = self._reach(self._columns, above.any(dim=0))
        if rows is None or columns is None:
            return None
        (y0, y1, r0, r1), (x0, x1, c0, c1) = rows, columns
        logits = (
            self._rows[y0:y1, r0:r1] @ low_res_mask[r0:r1, c0:c1] @ self._columns[x0:x1, c0:c1].T
        )
        return Window(logits=logits, offset_xy=(x0, y0))

    @staticmethod
    def _reach(matrix: Tensor, above: Tensor) -> tuple[int, int, int, int] | None:
        """Pixels [a, b) that cells above the level reach, and the cells [c, d) these read."""
        cells = torch.nonzero(above).flatten()
        if len(cells) == 0:
            return None
        pixels = torch.nonzero(matrix[:, cells[0] : cells[-1] + 1].any(dim=1)).flatten()
        if len(pixels) == 0:  # only in the padding
            return None
        start, stop = int(pixels[0]), int(pixels[-1]) + 1
        read = torch.nonzero(matrix[start:stop].any(dim=0)).flatten()
        return start, stop, int(read[0]), int(read[-1]) + 1


def _axis_matrix(low_res: int, padded: int, size_input: int, size_orig: int) -> Tensor:
    """(size_orig, low_res): both bilinear steps along one axis, padding cut off between them."""
    return _bilinear(size_input, size_orig) @ _bilinear(low_res, padded)[:size_input]


def _bilinear(size_in: int, size_out: int) -> Tensor:
    """(size_out, size_in) weights of bilinear interpolation with half-pixel centres."""
    unit = torch.eye(size_in)[None]
    weights = torch.nn.functional.interpolate(unit, size_out, mode="linear", align_corners=False)
    return weights[0].T.contiguous()
