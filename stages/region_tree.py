"""Regions of an image, merged one after another across the weakest border.

The edge strengths of `model/edge_detector.py` make basins, and basins make regions, pairs of which
are put together in the order of their common border's mean strength, as in the ultrametric contour
maps of Arbelaez et al., "Contour Detection and Hierarchical Image Segmentation" (2011). Regions are
numbered so that all that is ever put together is a run of them.
"""

# Axes: (H, W) pixels, R regions, M nodes: the regions and all unions of them.

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

SIGMA = 0.7
"""Pixels by which edges are smoothed before basins are looked for."""

Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class RegionTree:
    regions: Numbers
    """(H, W), from 0."""
    nodes: Numbers
    """(M, 2), each the regions from the first number up to but without the second."""
    borders: NDArray[np.float64]
    """(R - 1,) what separates each region from the one of next number: the mean strength of the
    border across which the two came together."""

    @classmethod
    def of(cls, strength: NDArray[np.float32]) -> "RegionTree":
        """
        Args:
            strength: (H, W) of edges, 0 to 1.
        """
        basins = watershed(ndimage.gaussian_filter(strength, SIGMA)).astype(np.intp) - 1
        merges = _merges(basins, strength)
        num_regions = len(merges) + 1
        counts = np.ones(num_regions + len(merges), dtype=np.intp)
        for node, (one, other, _) in enumerate(merges, start=num_regions):
            counts[node] = counts[one] + counts[other]
        first = np.zeros_like(counts)
        borders = np.zeros(num_regions - 1)
        for node in reversed(range(num_regions, len(counts))):
            one, other, weakest = merges[node - num_regions]
            first[one], first[other] = first[node], first[node] + counts[one]
            borders[first[other] - 1] = weakest
        return cls(first[basins], np.stack((first, first + counts), axis=1), borders)

    def coarsened(self, least: float) -> "RegionTree":
        """Without its borders that are weaker."""
        whole = self.cut(least)
        first, last = whole[self.nodes[:, 0]], whole[self.nodes[:, 1] - 1]
        nodes = np.unique(np.stack((first, last + 1), axis=1), axis=0)
        return RegionTree(whole[self.regions], nodes, self.borders[self.borders >= least])

    def cut(self, least: float) -> Numbers:
        """(R,) what each region belongs to when all is put together across weaker borders."""
        return np.concatenate(((0,), np.cumsum(self.borders >= least)))


def _merges(basins: Numbers, strength: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Which two nodes make the next one, and the mean strength of the border between them.

    Of two nodes, the one of fewer neighbours joins the other, so that a background pays for each
    thing upon it once.
    """
    num_regions = int(basins.max()) + 1
    neighbours: list[dict[int, tuple[float, int]]] = [{} for _ in range(num_regions)]
    node_of = list(range(num_regions))  # what has grown around a region
    queue = []
    borders = Borders.of(basins, strength)
    columns = borders.ones, borders.others, borders.strengths, borders.lengths
    for one, other, total, length in zip(*(x.tolist() for x in columns), strict=True):
        neighbours[one][other] = neighbours[other][one] = total, length
        queue.append((total / length, one, other))
    heapq.heapify(queue)
    merges: list[tuple[int, int, float]] = []
    while queue:
        weakest, one, other = heapq.heappop(queue)
        total, length = neighbours[one].get(other, (0.0, 0))
        if length == 0 or total / length != weakest:
            continue  # has become part of a longer border, or is none any more
        if len(neighbours[one]) < len(neighbours[other]):
            one, other = other, one
        earlier, later = sorted((node_of[one], node_of[other]))
        merges.append((earlier, later, weakest))
        node_of[one] = num_regions + len(merges) - 1
        del neighbours[one][other]
        for beyond, (total, length) in neighbours[other].items():
            if beyond == one:
                continue
            known_total, known_length = neighbours[one].get(beyond, (0.0, 0))
            border = known_total + total, known_length + length
            neighbours[one][beyond] = neighbours[beyond][one] = border
            del neighbours[beyond][other]
            heapq.heappush(queue, (border[0] / border[1], min(one, beyond), max(one, beyond)))
        neighbours[other] = {}
    return merges


@dataclass(frozen=True)
class Borders:
    """Of every two regions that touch."""

    ones: Numbers
    others: Numbers
    """(B,) their numbers, the lower one first."""
    strengths: NDArray[np.float64]
    """(B,) of the edges between them, summed."""
    lengths: Numbers
    """(B,) pairs of pixels side by side, one in each."""

    @classmethod
    def of(cls, regions: Numbers, strength: NDArray[np.float32]) -> "Borders":
        """
        Args:
            regions: (H, W), from 0.
            strength: (H, W) of edges; between two pixels it is the greater one's.
        """
        pairs, strengths = [], []
        for before, after in (
            (np.s_[:-1], np.s_[1:]),
            (np.s_[:, :-1], np.s_[:, 1:]),
        ):
            apart = regions[before] != regions[after]
            pairs.append(np.sort((regions[before][apart], regions[after][apart]), axis=0))
            strengths.append(np.maximum(strength[before][apart], strength[after][apart]))
        number = int(regions.max()) + 1
        one, other = np.concatenate(pairs, axis=1)
        keys, which = np.unique(one * number + other, return_inverse=True)
        totals, lengths = np.bincount(which, np.concatenate(strengths)), np.bincount(which)
        ones, others = np.divmod(keys, number)
        return cls(ones, others, totals.astype(np.float64), lengths)
