"""Masks whose edges are those of the image: an answer is laid on its superpixels.

A model that has seen little knows roughly where an object is and badly where it ends; edges and
colours know the reverse. So the image is cut up several times, from fine to coarse: along its edges
(`stages/region_tree.py`), and into regions of one colour (Felzenszwalb & Huttenlocher, "Efficient
Graph-Based Image Segmentation", 2004). Each region takes the mean of the model's probabilities in
it, and what lies in the object by the mean over all segmentations is the mask. Where fine and
coarse regions agree with it, and where edges alone would make nearly the same region, it most often
is an object: this agreement stands for the stability score, and has a say in the predicted IoU. A
scorer that was taught what people draw (`model/mask_scorer.py`) may have it alone. Measured in
docs/log.md.
"""

# Axes: N masks, A atoms, K segmentations, M unions, s the side of logits, (H, W) work frame.

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from skimage.segmentation import felzenszwalb
from torch import Tensor

from model.edge_detector import shipped_edge_detector
from model.mask_scorer import MaskScorer
from model.transforms import ResizeLongestSide
from stages.mask_looks import MaskLooks, Values
from stages.region_tree import RegionTree
from stages.rle import Mask
from stages.windows import Axis, Scores, Window, trimmed

SIDE = 512
"""Longest side of the work frame, in which the image is cut up."""
SIGMA = 0.5
MIN_SIZE = 20
"""Work frame pixels of the smallest superpixel."""
MARGIN = 2
"""Work frame pixels around a mask that enlarging it looks at."""


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
        self.unions = Unions(tree.nodes, self.segmentations[0].members, self.areas)
        self.scorer = scorer
        self.looks: MaskLooks | None = None
        if scorer is not None:
            self.looks = MaskLooks(self.atoms, self.areas, colours, strength)


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


class Unions:
    """All that edges alone put together, to compare masks with."""

    def __init__(self, runs: NDArray[np.intp], members: NDArray[np.intp], areas: Values) -> None:
        """
        Args:
            runs: (M, 2), of superpixels: from the first number up to but without the second.
            members: (A,) which superpixel an atom belongs to.
            areas: (A,) of the atoms.
        """
        self.runs = runs
        self._areas_of_atoms = areas
        self._pixels = sparse.csr_array((areas, (members, np.arange(len(members)))))
        self._areas = self._shared_with(np.ones((len(areas), 1), dtype=np.bool_))

    def best_iou(self, masks: Mask) -> Values:
        """(N,) of masks (A, N): the IoU with the union that is most like it."""
        shared = self._shared_with(masks)
        either = self._areas + self._areas_of_atoms @ masks - shared
        ious: Values = (shared / either).max(axis=0)
        return ious

    def _shared_with(self, masks: Mask) -> Values:
        """(M, N) pixels."""
        up_to = np.cumsum(self._pixels @ masks.astype(np.float64), axis=0)
        up_to = np.concatenate((np.zeros((1, masks.shape[1])), up_to))
        shared: Values = up_to[self.runs[:, 1]] - up_to[self.runs[:, 0]]
        return shared


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


class SnappedUpscale:
    """Low-resolution logits to masks made of superpixels; stands where `WindowedUpscale` stands."""

    def __init__(self, transform: ResizeLongestSide, superpixels: Superpixels) -> None:
        if superpixels.size_hw != transform.size_hw_orig:
            raise ValueError(
                f"superpixels of an image of {superpixels.size_hw} pixels; expected "
                f"{transform.size_hw_orig}"
            )
        self._superpixels = superpixels
        self._size_hw = transform.size_hw_orig
        low_res, square = transform.image_size // 4, transform.image_size
        rows, columns = (
            Axis(low_res, square, size_input, size_work)
            for size_input, size_work in zip(
                transform.size_hw_input, superpixels.atoms.shape, strict=True
            )
        )
        self._num_cells = rows.num_cells, columns.num_cells
        atoms, areas = superpixels.atoms.ravel(), superpixels.areas
        pixels = np.arange(len(atoms))
        mean = sparse.csr_array((1 / areas[atoms], (atoms, pixels)), (len(areas), len(atoms)))
        upscale = sparse.kron(rows.matrix.numpy(), columns.matrix.numpy(), format="csr")
        self._atom_means = mean @ upscale
        """(A, cells): the mean over each atom of what the cells are enlarged to."""

    def scores(
        self,
        low_res_masks: Tensor,
        of_head: NDArray[np.float32],
        *,
        threshold: float,
        offset: float,
    ) -> Scores:
        """The stability is how well the single segmentations agree with the mask that they make
        together, their mean IoU with it, times its IoU with the union of superpixels most like it.

        Args:
            low_res_masks: (N, s, s) logits, float32, on the CPU.
            of_head: (N,) what the model says of its masks.
            offset: without meaning here.
        """
        found = self._agreements(low_res_masks, threshold)
        agreement, scorer = found.product, self._superpixels.scorer
        if scorer is None:
            return Scores(agreement, self.weighed(of_head, agreement))
        worth = scorer.predicted_iou(self._features(found))
        return Scores(agreement, np.where(np.isnan(agreement), np.float32(0), worth))

    def features(self, low_res_masks: Tensor, *, threshold: float) -> tuple[Values, Values]:
        """(N, F) what a scorer is told of masks (N, s, s), and (N,) their agreement."""
        found = self._agreements(low_res_masks, threshold)
        return self._features(found), found.product

    def _agreements(self, low_res_masks: Tensor, threshold: float) -> Agreements:
        together, apart = self._in_atoms(low_res_masks, threshold)
        areas = self._superpixels.areas
        ious = [
            (areas @ (together & alone)) / np.maximum(areas @ (together | alone), 1)
            for alone in apart
        ]
        return Agreements(together, np.stack(ious), self._superpixels.unions.best_iou(together))

    def _features(self, found: Agreements) -> Values:
        looks = self._superpixels.looks
        if looks is None:
            raise ValueError("these superpixels were made without a scorer of masks")
        agreements = found.of_unions[None], found.of_segmentations
        return np.concatenate((looks.of(found.masks), *agreements)).T

    def weighed(
        self, of_head: NDArray[np.float32], agreement: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """(N,) the weighted geometric mean of what the model says of its own masks and the
        agreement."""
        trust = self._superpixels.trust_in_head
        head = np.clip(of_head, 0, 1).astype(np.float64)
        worth: NDArray[np.float64] = head**trust * np.nan_to_num(agreement) ** (1 - trust)
        return worth.astype(np.float32)

    def least_of_head(self, pred_iou_thresh: float) -> float:
        """What the model must say at least where a mask is to be worth more than a threshold."""
        if pred_iou_thresh < 0 or self._superpixels.scorer is not None:
            return -np.inf
        return float(pred_iou_thresh ** (1 / self._superpixels.trust_in_head))

    def mask(self, low_res_mask: Tensor, *, threshold: float) -> Window | None:
        """The mask of logits (s, s) above the threshold; None when it is empty."""
        together, _ = self._in_atoms(low_res_mask[None], threshold)
        return self._enlarged(together[self._superpixels.atoms, 0])

    def _in_atoms(self, low_res_masks: Tensor, threshold: float) -> tuple[Mask, tuple[Mask, ...]]:
        """(A, N) bool, of all segmentations together, and K times of each alone."""
        rows, columns = self._num_cells
        logits = low_res_masks[:, :rows, :columns].flatten(1) - threshold
        chances = logits.sigmoid().T.numpy().astype(np.float64) - 0.5
        of_atoms = self._atom_means @ chances
        levels = [one.smoothed(of_atoms) for one in self._superpixels.segmentations]
        return np.mean(levels, axis=0) > 0, tuple(level > 0 for level in levels)

    def _enlarged(self, mask: Mask) -> Window | None:
        """A mask of the work frame in the image's."""
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(ys) == 0:
            return None
        spans = []
        for found, size_work, size in zip(
            (xs, ys), mask.shape[::-1], self._size_hw[::-1], strict=True
        ):
            first = max(0, int((found[0] - MARGIN) * size / size_work))
            last = min(size, int((found[-1] + 1 + MARGIN) * size / size_work) + 1)
            spans.append((first, last, size_work / size))
        (x0, x1, scale_x), (y0, y1, scale_y) = spans
        drawn = Image.fromarray(mask.astype(np.uint8) * 255).resize(
            (x1 - x0, y1 - y0),
            Image.Resampling.BILINEAR,
            box=(x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y),
        )
        return trimmed(np.asfortranarray(np.asarray(drawn) > 127), (x0, y0))
