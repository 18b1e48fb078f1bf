"""Overlapping windows of an image, and what carrying a result from a window to the image takes."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoxXyxy = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    box_xyxy: BoxXyxy
    """Image pixels, right and bottom exclusive."""
    layer: int
    """0 is the whole image; layer i has 2^i crops a side."""

    @property
    def size_hw(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box_xyxy
        return y1 - y0, x1 - x0

    @property
    def area(self) -> int:
        height, width = self.size_hw
        return height * width

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = self.box_xyxy
        return pixels[y0:y1, x0:x1]


def crop_layers(size_hw: tuple[int, int], *, num_layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then for each layer i a 2^i x 2^i lattice of overlapping crops.

    Args:
        overlap_ratio: overlap in layer 1 as a share of the short side; halves with each layer.
    """
    height, width = size_hw
    crops = [Crop((0, 0, width, height), layer=0)]
    for layer in range(1, num_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(size_hw) * 2 / per_side)
        spans_x = _spans(width, per_side, overlap)
        spans_y = _spans(height, per_side, overlap)
        crops += [Crop((x0, y0, x1, y1), layer) for x0, x1 in spans_x for y0, y1 in spans_y]
    return crops


def _spans(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """Distinct and non-empty: an image smaller than its lattice has fewer crops, not empty ones."""
    size = math.ceil((overlap * (count - 1) + length) / count)
    starts = dict.fromkeys(min(index * (size - overlap), length - 1) for index in range(count))
    return [(start, min(start + size, length)) for start in starts]
