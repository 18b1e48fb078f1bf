"""What the pixels say of a mask made of superpixels: its size, its outline and what lies within."""

# Axes: N masks, A atoms, (H, W) work frame.

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stages.region_tree import Borders
from stages.rle import Mask

Values = NDArray[np.float64]

NUM_LOOKS = 7


class MaskLooks:
    """Of the masks of one image."""

    def __init__(
        self,
        atoms: NDArray[np.intp],
        areas: Values,
        colours: NDArray[np.uint8],
        strength: NDArray[np.float32],
    ) -> None:
        """
        Args:
            atoms: (H, W) which atom a pixel belongs to.
            areas: (A,) pixels of the atoms.
            colours: (H, W, 3) RGB.
            strength: (H, W) of edges.
        """
        self._areas = areas
        atom_of, rgb = atoms.ravel(), colours.reshape(-1, 3) / 255
        in_atom = sparse.csr_array(
            (np.ones(len(atom_of)), (atom_of, np.arange(len(atom_of)))),
            (len(areas), len(atom_of)),
        )
        self._colours, self._squares = in_atom @ rgb, in_atom @ rgb**2
        """(A, 3) sums over the atom's pixels."""
        self._means = self._colours / areas[:, None]
        borders = Borders.of(atoms, strength)
        where = (
            np.concatenate((borders.ones, borders.others)),
            np.concatenate((borders.others, borders.ones)),
        )
        lengths, strengths = np.tile(borders.lengths, 2), np.tile(borders.strengths, 2)
        square = (len(areas), len(areas))
        self._lengths = sparse.csr_array((lengths.astype(np.float64), where), square)
        self._edges = sparse.csr_array((strengths, where), square)
        """(A, A) of the borders of atoms: their length, and the strength of edges there, summed."""
        self._all_lengths, self._all_edges = self._lengths.sum(axis=1), self._edges.sum(axis=1)

    def of(self, masks: Mask) -> Values:
        """(NUM_LOOKS, N) of masks (A, N): the logarithm of its pixels; the length of borders of
        atoms within, over the root of its pixels; mean strength of edges on its outline, and on
        the borders within; how unlike in colour it is to the atoms around it, and its atoms at the
        outline are to these; its deviation in colour. What has no outline is beside black."""
        inside = masks.astype(np.float64)
        pixels = np.maximum(self._areas @ inside, 1)
        lengths, edges = self._lengths @ inside, self._edges @ inside
        """(A, N) of each atom's borders with the mask's atoms."""
        within, edges_within = (inside * lengths).sum(axis=0) / 2, (inside * edges).sum(axis=0) / 2
        outward, inward = inside * (self._all_lengths[:, None] - lengths), lengths * ~masks
        outline = outward.sum(axis=0)
        edges_outside = self._all_edges @ inside - 2 * edges_within
        of_mask = self._colours.T @ inside / pixels
        deviation = np.sqrt((self._squares.T @ inside / pixels - of_mask**2).clip(0))
        around = self._means.T @ inward / np.maximum(outline, 1)
        beside = self._means.T @ outward / np.maximum(outline, 1)
        return np.stack(
            (
                np.log(pixels),
                within / np.sqrt(pixels),
                edges_outside / np.maximum(outline, 1),
                edges_within / np.maximum(within, 1),
                np.abs(of_mask - around).mean(axis=0),
                np.abs(beside - around).mean(axis=0),
                deviation.mean(axis=0),
            )
        )
