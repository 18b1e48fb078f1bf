"""Superpixels on their way to a page, which makes its masks of them."""

import gzip

import numpy as np

from stages.superpixels import Superpixels

LEVEL = 6
"""Of the compression: a photograph's are some 80 kB, in 20 ms."""


def packed(superpixels: Superpixels) -> bytes:
    """gzip of little-endian uint32: height, width, A atoms, K segmentations; then the atom of each
    pixel of the work frame, rows first, and of each segmentation the superpixel of each atom."""
    atoms, members = superpixels.atoms, [one.members for one in superpixels.segmentations]
    values = np.concatenate(
        [(*atoms.shape, len(superpixels.areas), len(members)), atoms.ravel(), *members]
    )
    return gzip.compress(values.astype("<u4").tobytes(), LEVEL, mtime=0)
