"""How far masks are from convex, straight from their runs: 1 - area / area of the convex hull.

A pixel is the unit square it covers, so one pixel is convex, and so is any upright rectangle. The
hull's area comes out of whole numbers: it is exact, and the same on every machine. Many masks are
worked on at once: one by one they would cost a worker three times as much.
"""

# Axes: N masks, R runs of all masks, C columns that meet a mask, one mask after another.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.records import Rle
from stages.rle import rle_runs

Ints = NDArray[np.int64]

MASKS_AT_ONCE = 64
"""Enough to hide the cost of a call, few enough to need next to no memory."""


def concavities(rles: Sequence[Rle]) -> list[float]:
    """In [0, 1); 0 for a convex mask and for an empty one."""
    starts = range(0, len(rles), MASKS_AT_ONCE)
    return [
        value for start in starts for value in _concavities(rles[start : start + MASKS_AT_ONCE])
    ]


def hull_area(rle: Rle) -> float:
    """Area of the convex hull of the mask's pixels, in pixels; 0 for an empty mask."""
    return float(_hull_areas([rle_runs(rle)], [rle.size[0]])[0])


def _concavities(rles: Sequence[Rle]) -> list[float]:
    runs = [rle_runs(rle) for rle in rles]
    areas = [int((run[:, 1] - run[:, 0]).sum()) for run in runs]
    hulls = _hull_areas(runs, [rle.size[0] for rle in rles]).tolist()
    return [1 - area / hull if hull else 0.0 for area, hull in zip(areas, hulls, strict=True)]


def _hull_areas(runs: Sequence[Ints], heights: Sequence[int]) -> NDArray[np.float64]:
    """(N,)"""
    owners, columns, tops, bottoms = _column_extents(runs, heights)
    upper = _twice_area_below_chains(owners, columns, tops, len(runs))
    lower = _twice_area_below_chains(owners, columns, -bottoms, len(runs))
    return (upper + lower) / -2


def _column_extents(runs: Sequence[Ints], heights: Sequence[int]) -> tuple[Ints, Ints, Ints, Ints]:
    """Of every column that meets a mask: whose it is, its x, its first row, the row after its last.

    (C,) each.
    """
    lengths = [len(run) for run in runs]
    owner = np.repeat(np.arange(len(runs)), lengths)  # (R,)
    height = np.repeat(np.array(heights, dtype=np.int64), lengths)
    start, end = np.concatenate(runs).T
    first, last = start // height, (end - 1) // height
    spans = last - first + 1  # a run may cross into the next columns
    piece = np.arange(spans.sum()) - np.repeat(spans.cumsum() - spans, spans)  # 0, 1, .. in its run
    column = np.repeat(first, spans) + piece
    owner, height = np.repeat(owner, spans), np.repeat(height, spans)
    top = np.maximum(np.repeat(start, spans) - column * height, 0)
    bottom = np.minimum(np.repeat(end, spans) - column * height, height)
    # Pieces come sorted by mask, then by column, then by row.
    changes = (np.diff(column, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0)
    opens, closes = np.flatnonzero(changes), np.flatnonzero(np.roll(changes, -1))
    return owner[opens], column[opens], top[opens], bottom[closes]


def _twice_area_below_chains(owners: Ints, columns: Ints, tops: Ints, count: int) -> Ints:
    """(N,) twice the area between row 0 and the hull's upper edge, over columns one pixel wide.

    A corner below the line between its neighbours lies inside the hull, whichever others go in the
    same sweep; a few sweeps are enough where a stack would visit the corners one by one.
    """
    xs = np.stack((columns, columns + 1), axis=1).ravel()
    ys, owners = np.repeat(tops, 2), np.repeat(owners, 2)
    while True:
        dx, dy = np.diff(xs), np.diff(ys)
        is_end = np.diff(owners, prepend=-1).astype(bool) | np.diff(owners, append=-1).astype(bool)
        kept = is_end.copy()
        kept[1:-1] |= dx[:-1] * dy[1:] > dy[:-1] * dx[1:]
        if kept.all():
            break
        xs, ys, owners = xs[kept], ys[kept], owners[kept]
    trapezoids = np.where(owners[1:] == owners[:-1], dx * (ys[1:] + ys[:-1]), 0)
    areas = np.zeros(count, dtype=np.int64)
    np.add.at(areas, owners[1:], trapezoids)
    return areas
