"""Where to click: regular grids, and the centre of what is still wrong."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stages.rle import Mask

Point = tuple[float, float]


def point_grid(points_per_side: int, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 2) points (x, y) at the centres of a regular lattice over a frame, row by row."""
    height, width = size_hw
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    grid = np.stack(np.meshgrid(steps * width, steps * height), axis=-1)
    return grid.reshape(-1, 2).astype(np.float32)


def centre_click(region: Mask) -> Point:
    """The pixel of a region farthest from its outside: where a careful person clicks.

    The frame's border counts as outside. The region must not be empty.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if len(rows) == 0:
        raise ValueError("cannot click into an empty region")
    y0, x0 = int(rows[0]), int(columns[0])
    window = np.pad(region[y0 : rows[-1] + 1, x0 : columns[-1] + 1], 1)
    distance = ndimage.distance_transform_edt(window)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x0 + x - 1), float(y0 + y - 1)


def largest_component(region: Mask) -> Mask:
    """The largest 8-connected component; empty for an empty region."""
    labels, count = ndimage.label(region, structure=np.ones((3, 3)))
    if count <= 1:
        return region
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def error_region(mask: Mask, truth: Mask) -> tuple[Mask, int] | None:
    """The largest connected error and the label that mends it: 1 where missed, 0 where spilled.

    None when the masks are equal.
    """
    missed, spilled = largest_component(truth & ~mask), largest_component(mask & ~truth)
    num_missed, num_spilled = int(missed.sum()), int(spilled.sum())
    if num_missed == num_spilled == 0:
        return None
    return (missed, 1) if num_missed >= num_spilled else (spilled, 0)


def mask_iou(first: Mask, second: Mask) -> float:
    """1 for two empty masks."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
