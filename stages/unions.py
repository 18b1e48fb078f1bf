"""What edges alone put together of an image: to compare masks with, and to take for an answer."""

# Axes: N masks, A atoms, R superpixels of the finest cut along edges, M unions of them, U of these
# around a place, (H, W) work frame.

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from stages.region_tree import Numbers, RegionTree
from stages.rle import Mask
from stages.windows import trimmed

Values = NDArray[np.float64]

MOST_AROUND = 40
"""Unions that are looked at around a place, the largest."""
DEEPEST = 10.0
"""Pixels by which a place misses the middle of a union; more counts as so many."""


class Distances(NamedTuple):
    """From a pixel of the work frame, in pixels."""

    to_atoms: Values
    """(A,) to the nearest pixel of each."""
    to_end: float
    """To what is outside of the frame."""

    @classmethod
    def of(cls, place_xy: tuple[int, int], atoms: Numbers) -> "Distances":
        """
        Args:
            atoms: (H, W) which atom a pixel belongs to.
        """
        x, y = place_xy
        height, width = atoms.shape
        rows, columns = np.ogrid[:height, :width]
        to_atoms = np.full(int(atoms.max()) + 1, np.inf)
        np.minimum.at(to_atoms, atoms.ravel(), np.hypot(rows - y, columns - x).ravel())
        return cls(to_atoms, min(x, y, width - 1 - x, height - 1 - y) + 1.0)

    def depths(self, masks: Mask) -> Values:
        """(N,) to what is outside of each of masks (A, N)."""
        nearest = np.where(masks, np.inf, self.to_atoms[:, None]).min(axis=0)
        depths: Values = np.minimum(nearest, self.to_end)
        return depths


class Around(NamedTuple):
    """The unions that hold a place, one within the other, largest first."""

    which: Numbers
    """(U,)"""
    areas: Values
    """(U,) pixels."""
    looks: Values
    """(U, 8): how deep in the union the place lies, as a share of its deepest place; the logarithms
    of that one's depth, and of the union's share of the image; the strength of the border across
    which it grows next, and of the strongest within it, and their difference; its greatest depth
    over the root of its pixels; by how many pixels the place misses the middle."""


class Unions:
    def __init__(self, tree: RegionTree, members: Numbers, areas: Values) -> None:
        """
        Args:
            tree: whose regions are the superpixels.
            members: (A,) which superpixel an atom belongs to.
            areas: (A,) pixels of the atoms.
        """
        self.runs, self.borders = tree.nodes, tree.borders
        """(M, 2), from the first superpixel up to but without the second; (R - 1,) between
        superpixels of neighbouring numbers, see `RegionTree`."""
        self._regions = tree.regions
        self._areas_of_atoms = areas
        self._pixels = sparse.csr_array((areas, (members, np.arange(len(members)))))
        self.areas = self._shared_with(np.ones((len(areas), 1), dtype=np.bool_))[:, 0]
        """(M,) pixels."""
        self._members = members

    def ious(self, masks: Mask) -> Values:
        """(M, N) with masks (A, N)."""
        shared = self._shared_with(masks)
        ious: Values = shared / (self.areas[:, None] + self._areas_of_atoms @ masks - shared)
        return ious

    def masks(self, which: Numbers) -> Mask:
        """(A, U) of some unions."""
        first, end = self.runs[which].T
        members = self._members[:, None]
        masks: Mask = (first <= members) & (members < end)
        return masks

    def around(self, atom: int, distances: Distances) -> Around:
        """
        Args:
            atom: that a place lies in.
            distances: from there.
        """
        nearest = np.full(len(self.borders) + 1, np.inf)
        np.minimum.at(nearest, self._members, distances.to_atoms)
        beyond = (distances.to_end,)
        before = np.minimum.accumulate(np.concatenate((beyond, nearest)))
        behind = np.minimum.accumulate(np.concatenate((beyond, nearest[::-1])))[::-1]
        here = self._members[atom]
        which = np.flatnonzero((self.runs[:, 0] <= here) & (here < self.runs[:, 1]))
        which = which[np.argsort(-self.areas[which], kind="stable")][:MOST_AROUND]
        first, end = self.runs[which].T
        depth, deepest, areas = (
            np.minimum(before[first], behind[end]),
            self.depths[which],
            self.areas[which],
        )
        ends = np.concatenate(((1.0,), self.borders, (1.0,)))
        outward = np.minimum(ends[first], ends[end])
        within = np.array([self.borders[a : b - 1].max(initial=0) for a, b in self.runs[which]])
        share, log_deepest, missed = depth_looks(depth, deepest)
        looks = (
            share,
            log_deepest,
            np.log(areas / self._regions.size),
            outward,
            within,
            outward - within,
            deepest / np.sqrt(areas),
            missed,
        )
        return Around(which, areas, np.stack(looks, axis=1))

    @cached_property
    def depths(self) -> Values:
        """(M,) of each union's deepest place: pixels to what is outside, of the image as well."""
        boxes = ndimage.find_objects(self._regions + 1)
        tops, lefts = (np.array([box[axis].start for box in boxes]) for axis in (0, 1))
        bottoms, rights = (np.array([box[axis].stop for box in boxes]) for axis in (0, 1))
        depths = np.zeros(len(self.runs))
        for union, (first, end) in enumerate(self.runs):
            rows = slice(tops[first:end].min(), bottoms[first:end].max())
            columns = slice(lefts[first:end].min(), rights[first:end].max())
            seen = self._regions[rows, columns]
            depths[union] = greatest_depth((first <= seen) & (seen < end))
        return depths

    def _shared_with(self, masks: Mask) -> Values:
        """(M, N) pixels."""
        up_to = np.cumsum(self._pixels @ masks.astype(np.float64), axis=0)
        up_to = np.concatenate((np.zeros((1, masks.shape[1])), up_to))
        shared: Values = up_to[self.runs[:, 1]] - up_to[self.runs[:, 0]]
        return shared


def depth_looks(depth: Values, deepest: Values) -> tuple[Values, Values, Values]:
    """Of places in masks, N times: how deep each lies as a share of the deepest place, the
    logarithm of that one's depth, and by how many pixels it misses the middle."""
    deepest = np.maximum(deepest, 1)
    return np.minimum(depth / deepest, 1), np.log(deepest), np.minimum(deepest - depth, DEEPEST)


def greatest_depth(mask: Mask) -> float:
    """Of a mask (H, W): pixels from its deepest place to what is outside, of the frame as well."""
    window = trimmed(mask, (0, 0))
    if window is None:
        return 0.0
    return float(ndimage.distance_transform_edt(np.pad(window.mask, 1)).max())
