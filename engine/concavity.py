"""How far a mask is from convex, straight from its runs: 1 - area / area of its convex hull.

A pixel is the unit square it covers, so one pixel is convex, and so is any upright rectangle. The
hull's area comes out of whole numbers: it is exact, and the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from stages.records import Rle
from stages.rle import rle_runs

Ints = NDArray[np.int64]


def concavity(rle: Rle) -> float:
    """In [0, 1); 0 for a convex mask and for an empty one."""
    runs = rle_runs(rle)
    if len(runs) == 0:
        return 0.0
    area = int((runs[:, 1] - runs[:, 0]).sum())
    return 1 - area / _hull_area(runs, height=rle.size[0])


def hull_area(rle: Rle) -> float:
    """Area of the convex hull of the mask's pixels, in pixels; 0 for an empty mask."""
    runs = rle_runs(rle)
    return _hull_area(runs, height=rle.size[0]) if len(runs) else 0.0


def _hull_area(runs: Ints, *, height: int) -> float:
    columns, tops, bottoms = _column_extents(runs, height)
    upper = _chain(columns, tops)
    lower = _chain(columns, -bottoms)
    return (_twice_area_below(*upper) + _twice_area_below(*lower)) / -2


def _column_extents(runs: Ints, height: int) -> tuple[Ints, Ints, Ints]:
    """Of every column that meets the mask: its x, its first row, and the row after its last."""
    first, last = runs[:, 0] // height, (runs[:, 1] - 1) // height
    spans = last - first + 1  # a run may cross into the next columns
    piece = np.arange(spans.sum()) - np.repeat(spans.cumsum() - spans, spans)  # 0, 1, .. in its run
    column = np.repeat(first, spans) + piece
    top = np.maximum(np.repeat(runs[:, 0], spans) - column * height, 0)
    bottom = np.minimum(np.repeat(runs[:, 1], spans) - column * height, height)
    opens = np.flatnonzero(np.diff(column, prepend=-1))  # pieces come sorted by column, then by row
    closes = np.append(opens[1:], len(column)) - 1
    return column[opens], top[opens], bottom[closes]


def _chain(columns: Ints, tops: Ints) -> tuple[Ints, Ints]:
    """The corners (x, y) of the hull's upper edge over columns one pixel wide, left to right.

    A corner below the line between its neighbours lies inside the hull, whichever others go in the
    same sweep; a few sweeps are enough where a stack would visit the corners one by one.
    """
    xs = np.stack((columns, columns + 1), axis=1).ravel()
    ys = np.repeat(tops, 2)
    while True:
        dx, dy = np.diff(xs), np.diff(ys)
        outside = np.concatenate(([True], dx[:-1] * dy[1:] > dy[:-1] * dx[1:], [True]))
        if outside.all():
            return xs, ys
        xs, ys = xs[outside], ys[outside]


def _twice_area_below(xs: Ints, ys: Ints) -> int:
    return int((np.diff(xs) * (ys[1:] + ys[:-1])).sum())
