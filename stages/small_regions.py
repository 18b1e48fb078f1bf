"""Specks and pinholes of masks, found among the runs of their encoding: nothing is drawn.

A photograph has millions of pixels, a mask in it a few thousand runs. (With some hundred thousand,
as of noise, drawing would be as fast.) Runs are cut at the ends of their columns, and columns are
laid end to end with an empty row between two of them, so that only what touches in the image
touches in these positions.
"""

# Axes: N runs, E pairs of runs that touch.

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.records import Rle
from stages.rle import rle_from_runs, rle_runs

Runs = NDArray[np.int64]
"""(N, 2) start and end of each, in order; row y of column x is at x * (height + 1) + y."""


def clean_rle(rle: Rle, min_area: int, *, drop_small: bool) -> Rle | None:
    """Fill holes, then remove components, smaller than `min_area` pixels; corners connect both.

    In that order, as the official `remove_small_regions` (segment_anything/utils/amg.py).

    Args:
        drop_small: what becomes of a mask without a component that is large enough: nothing of it
            stays, or the largest one (of several, that of the topmost and then leftmost pixel).

    Returns:
        The mask itself where all of it is large enough and nothing changes; None where nothing
        stays.
    """
    height, width = rle.size
    stride = height + 1
    mask = _by_column(rle_runs(rle), height)
    if len(mask) == 0:
        return None
    background = _between(mask, stride, width)
    holes = background[_component_areas(background, stride)[0] < min_area]
    filled = _united(mask, holes) if len(holes) else mask
    areas, labels = _component_areas(filled, stride)
    stays = areas >= min_area
    if len(holes) == 0 and stays.all():
        return rle
    if not stays.any():
        if drop_small:
            return None
        stays = labels == labels[_topmost(filled, areas == areas.max(), stride)]
    x, y = np.divmod(filled[stays], stride)
    return rle_from_runs(x * height + y, rle.size)


def _by_column(runs: NDArray[np.int64], height: int) -> Runs:
    """Runs of `rle_runs`, which may go on in the next column, cut where their columns end."""
    first, last = runs[:, 0] // height, (runs[:, 1] - 1) // height
    counts = last - first + 1
    begins = np.cumsum(counts) - counts
    columns = np.arange(counts.sum()) - np.repeat(begins - first, counts)
    cut = np.stack((columns, columns), axis=1) * (height + 1)
    cut[:, 1] += height
    cut[begins, 0] += runs[:, 0] - first * height
    cut[begins + counts - 1, 1] += runs[:, 1] - (last + 1) * height
    return cut


def _between(runs: Runs, stride: int, width: int) -> Runs:
    """What the runs leave of all columns."""
    tops = np.arange(width) * stride
    starts = np.sort(np.concatenate((tops, runs[:, 1])))
    ends = np.sort(np.concatenate((tops + stride - 1, runs[:, 0])))
    left = np.stack((starts, ends), axis=1)
    return left[starts < ends]


def _united(first: Runs, second: Runs) -> Runs:
    """Runs that do not overlap, in order; those that touch become one."""
    runs = np.concatenate((first, second))
    runs = runs[runs[:, 0].argsort()]
    apart = runs[1:, 0] != runs[:-1, 1]
    starts = runs[np.concatenate(([True], apart)), 0]
    return np.stack((starts, runs[np.concatenate((apart, [True])), 1]), axis=1)


def _component_areas(runs: Runs, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(N,) pixels of the component each run belongs to, and (N,) which one that is."""
    starts, ends = runs.T
    # In the next column, runs from `first` to `stop` have a side or a corner in common with it.
    first = np.searchsorted(ends, starts + stride, side="left")
    stop = np.searchsorted(starts, ends + stride, side="right")
    counts = stop - first
    run = np.repeat(np.arange(len(runs)), counts)
    neighbour = np.arange(len(run)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    touching = coo_array((np.ones(len(run), bool), (run, neighbour)), shape=(len(runs), len(runs)))
    _, labels = connected_components(touching, directed=False)
    areas = np.bincount(labels, weights=ends - starts).astype(np.int64)
    return areas[labels], labels


def _topmost(runs: Runs, among: NDArray[np.bool_], stride: int) -> int:
    """The one of these runs that begins in the topmost row, and of several there the leftmost."""
    (candidates,) = np.nonzero(among)
    return int(candidates[np.argmin(runs[candidates, 0] % stride)])
