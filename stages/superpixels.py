"""An image cut up several times, so that masks can end where the image's regions end.

From fine to coarse: along its edges (`stages/region_tree.py`), and into regions of one colour
(Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation", 2004). What makes masks of
them is `stages/snapped_upscale.py`.
"""

# Axes: N masks, A atoms, K segmentations, (H, W) work frame.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from skimage.segmentation import felzenszwalb

from model.edge_detector import shipped_edge_detector
from model.mask_scorer import MaskScorer
from model.transforms import ResizeLongestSide
from stages.mask_looks import MaskLooks
from stages.region_tree import RegionTree
from stages.rle import Mask
from stages.unions import Unions, Values, greatest_depth

SIDE = 512
"""Longest side of the work frame, in which the image is cut up."""
SIGMA = 0.5
MIN_SIZE = 20
"""Work frame pixels of the smallest superpixel."""


class Cuts(NamedTuple):
    """What parts superpixels, of each segmentation, and how far these are believed."""

    edges: tuple[float, ...]
    """How strong an edge must be, from fine to coarse, one at least: the first segmentations."""
    colours: tuple[float, ...]
    """How unlike in colour the two sides of a border must be: the others."""
    trust_in_head: float
    """Share of the predicted IoU that is the word of the model's head; the rest is agreement's."""


CORRECTABLE = Cuts((0.03, 0.08, 0.15, 0.3, 0.5), (30.0, 60.0, 120.0), trust_in_head=1 / 2)
"""For masks that further clicks correct, for which they need small superpixels."""
UNCORRECTED = Cuts((0.12, 0.25, 0.4, 0.55, 0.7), (80.0, 160.0, 320.0), trust_in_head=1 / 5)
"""For masks that are as they are: large superpixels are whole objects more often, and say more of
prompts that nobody chose than the head does."""


class Superpixels:
    """An image cut up K times. What lies in the same superpixel every time is one atom."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        cuts: Cuts = CORRECTABLE,
        scorer: MaskScorer | None = None,
    ) -> None:
        """
        Args:
            pixels: RGB of an image or a crop.
            scorer: of masks; its word is the predicted IoU. Only with the cuts that it was taught
                with.
        """
        if scorer is not None and cuts != UNCORRECTED:
            raise ValueError("the scorer of masks was taught with the cuts UNCORRECTED")
        self.size_hw = (pixels.shape[0], pixels.shape[1])
        self.trust_in_head = cuts.trust_in_head
        height, width = ResizeLongestSide(self.size_hw, SIDE).size_hw_input
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        colours = np.asarray(resized)
        strength = shipped_edge_detector().strength(colours)
        tree = RegionTree.of(strength).coarsened(cuts.edges[0])
        segmentations = [
            *(tree.cut(least)[tree.regions].ravel() for least in cuts.edges),
            *(
                felzenszwalb(colours / 255, scale=scale, sigma=SIGMA, min_size=MIN_SIZE).ravel()
                for scale in cuts.colours
            ),
        ]
        atoms = np.zeros_like(segmentations[0])
        for segmentation in segmentations:
            pairs = atoms * (segmentation.max() + 1) + segmentation
            _, first, atoms = np.unique(pairs, return_index=True, return_inverse=True)
        self.atoms: NDArray[np.intp] = atoms.reshape(height, width)
        """(H, W), which atom a pixel belongs to."""
        self.areas = np.bincount(atoms).astype(np.float64)
        """(A,) pixels."""
        self.segmentations = tuple(Segmentation(one[first], self.areas) for one in segmentations)
        self.unions = Unions(tree, self.segmentations[0].members, self.areas)
        self.scorer = scorer
        self.looks: MaskLooks | None = None
        if scorer is not None:
            self.looks = MaskLooks(self.atoms, self.areas, colours, strength)

    def pixels_of(self, mask: Mask) -> Values:
        """(A,) of the work frame, by atoms, whose centres lie in a mask (H, W) of the image."""
        rows, columns = (
            ((np.arange(size_work) + 0.5) * size / size_work).astype(np.intp)
            for size_work, size in zip(self.atoms.shape, self.size_hw, strict=True)
        )
        seen = mask[np.ix_(rows, columns)]
        return np.bincount(self.atoms[seen], minlength=len(self.areas)).astype(np.float64)

    def greatest_depths(self, masks: Mask) -> Values:
        """(N,) of masks (A, N): pixels from the deepest place of each to what is outside."""
        return np.array([greatest_depth(mask[self.atoms]) for mask in masks.T])

    def smoothed(self, of_atoms: Values) -> list[Values]:
        """K times values (A, N), each replaced by the mean over its superpixel."""
        return [one.smoothed(of_atoms) for one in self.segmentations]

    def agreements(self, masks: Mask, levels: Sequence[Values]) -> "Agreements":
        """
        Args:
            masks: (A, N)
            levels: K times (A, N); what is above 0 is what each segmentation makes alone.
        """
        ious = [
            (self.areas @ (masks & (level > 0))) / np.maximum(self.areas @ (masks | (level > 0)), 1)
            for level in levels
        ]
        return Agreements(masks, np.stack(ious), self.unions.ious(masks).max(axis=0))


class Segmentation:
    """One way to put the atoms together."""

    def __init__(self, members: NDArray[np.intp], areas: Values) -> None:
        """
        Args:
            members: (A,) which superpixel an atom belongs to.
            areas: (A,) of the atoms.
        """
        self.members = members
        shares = areas / np.bincount(members, areas)[members]
        self._means = sparse.csr_array((shares, (members, np.arange(len(members)))))

    def smoothed(self, values: Values) -> Values:
        """(A, N) values of the atoms, each replaced by the mean over its superpixel."""
        means: Values = self._means @ values
        return means[self.members]


class Agreements(NamedTuple):
    """Of masks with the ways to cut their image up."""

    masks: Mask
    """(A, N)"""
    of_segmentations: Values
    """(K, N) IoU of what each makes alone with the mask."""
    of_unions: Values
    """(N,) IoU of the mask with the union most like it."""

    @property
    def product(self) -> Values:
        """(N,) nan where the mask is empty."""
        product = self.of_segmentations.mean(axis=0) * self.of_unions
        return np.where(self.masks.any(axis=0), product, np.nan)
