"""A mask that the model has not made as the model would have answered it, to show it with a click.

As web/ui/src/given.ts has it.
"""

# Axes: s the side of low-resolution logits, (H, W) image frame.

import numpy as np
import torch
from torch import Tensor

from model.transforms import ResizeLongestSide
from stages.rle import Mask

SURE = 10.0
"""What the model is shown for cells wholly inside; minus that outside. As sure as it mostly is."""
SAMPLES = 4
"""Places looked at along each side of a cell."""


def given_logits(mask: Mask, transform: ResizeLongestSide) -> Tensor:
    """(s, s) float32 of a mask (H, W): by how much of each cell it covers."""
    side = transform.image_size // 4
    padded = np.zeros((side * SAMPLES, side * SAMPLES), dtype=np.float32)
    rows, columns = (
        _pixels(side, size_input, size)
        for size_input, size in zip(transform.size_hw_input, mask.shape, strict=True)
    )
    padded[: len(rows), : len(columns)] = mask[np.ix_(rows, columns)]
    covered = padded.reshape(side, SAMPLES, side, SAMPLES).mean(axis=(1, 3))
    return torch.from_numpy(SURE * (2 * covered - 1))


def _pixels(side: int, size_input: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Of each place along one side that lies in the image."""
    places = (np.arange(side * SAMPLES) + 0.5) / SAMPLES * (4 * size / size_input)
    pixels: np.ndarray[tuple[int], np.dtype[np.intp]] = places.astype(np.intp)
    return pixels[pixels < size]
