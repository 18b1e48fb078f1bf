"""What the pixels say of a mask made of superpixels: its size, its outline and what lies within."""

# Axes: N masks, A atoms, (H, W) work frame.

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from stages.rle import Mask

Values = NDArray[np.float64]


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
        num_atoms, atom_of = len(areas), atoms.ravel()
        ones = sparse.csr_array(
            (np.ones(len(atom_of)), (atom_of, np.arange(len(atom_of)))), (num_atoms, len(atom_of))
        )
        rgb = colours.reshape(-1, 3) / 255
        self._colours, self._squares = ones @ rgb, ones @ rgb**2
        """(A, 3) sums over the atom's pixels."""
        pairs, edges = [], []
        for one, other in (
            (np.s_[:, :-1], np.s_[:, 1:]),
            (np.s_[:-1], np.s_[1:]),
        ):
            differ = atoms[one] != atoms[other]
            pairs.append(np.stack((atoms[one][differ], atoms[other][differ])))
            edges.append(np.maximum(strength[one], strength[other])[differ])
        either = np.concatenate([*pairs, *(pair[::-1] for pair in pairs)], axis=1)
        weights = np.concatenate([*edges, *edges]).astype(np.float64)
        square = (num_atoms, num_atoms)
        self._lengths = sparse.csr_array((np.ones(len(weights)), tuple(either)), square)
        """(A, A) pairs of pixels, one in each atom."""
        self._edges = sparse.csr_array((weights, tuple(either)), square)
        """(A, A) the strength of edges there, summed."""

    def of(self, masks: Mask) -> Values:
        """(7, N) of masks (A, N): the logarithm of its pixels; borders of atoms within, over the
        root of its pixels; mean strength of edges on its outline, and on the borders within; how
        unlike in colour it is to what is around it, and beside its outline; its deviation in
        colour."""
        inside = masks.astype(np.float64)
        pixels = np.maximum(self._areas @ inside, 1)
        lengths, edges = self._lengths @ inside, self._edges @ inside
        """(A, N) of each atom's borders with the mask's atoms."""
        within, edges_within = (inside * lengths).sum(axis=0) / 2, (inside * edges).sum(axis=0) / 2
        outward = inside * (self._lengths.sum(axis=1)[:, None] - lengths)
        outline = outward.sum(axis=0)
        edges_outside = (inside * self._edges.sum(axis=1)[:, None]).sum(axis=0) - 2 * edges_within
        inward = lengths * ~masks
        means = self._colours / self._areas[:, None]
        of_mask = self._colours.T @ inside / pixels
        deviation = np.sqrt((self._squares.T @ inside / pixels - of_mask**2).clip(0))
        around = means.T @ inward / np.maximum(outline, 1)
        beside = means.T @ outward / np.maximum(outline, 1)
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
