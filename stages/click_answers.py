"""What somebody means who clicks: the likeliest of the model's masks and of the regions clicked.

The model's outputs say roughly where things are, the unions of superpixels around the click where
things end. The first click means one of these; a further one adds such a union to the mask so far
or takes it away, unless an output of the model is nearer to what is meant. What each mask is worth
says `model/click_scorer.py`. One click is ambiguous and offers three: the likeliest, and what may
be meant instead, the largest first: whole, part, subpart. Measured in docs/log.md.
"""

# Axes: N masks, A atoms, K outputs of the model, U unions around the click, C clicks.

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.click_scorer import Clicks, nested_ious, shipped_click_scorer
from stages.rle import Mask
from stages.superpixels import Agreements, Superpixels
from stages.unions import Distances, Values, depth_looks

NUM_OFFERED = 3
WORTH, LIKENESS = 0.3, 1.4
"""What counts of a further mask that is offered, beside what it adds to those that are: its own
worth, less so many times its greatest IoU with them."""
LEAST_SHARE = 1e-4
"""Of the image; what is smaller counts as so large where logarithms are taken."""
UNHEEDED = 10.0
"""What is worth so much less is offered last."""
MOST_CLICKS, MOST_UNHEEDED = 5, 3
"""More count as so many."""


class Meant(NamedTuple):
    """Masks that may be meant, largest first."""

    masks: Mask
    """(A, N)"""
    predicted_iou: NDArray[np.float32]
    """(N,)"""
    outputs: tuple[int | None, ...]
    """Which of the model's each is; None: it is made with a union."""


class Clicked(NamedTuple):
    """The clicks for one mask, in the work frame, and the mask that the last of them corrects."""

    places_xy: tuple[tuple[int, int], ...]
    labels: tuple[int, ...]
    """1 adds, 0 takes away."""
    before: Mask
    """(A,) empty where nothing was asked yet; the atom that was clicked last is as the click does
    not want it, whatever most of its pixels are."""


class _Regions(NamedTuple):
    """Around a click."""

    ious: Values
    """(N, U) of all candidates with the masks that they make."""
    chances: Values
    """(U,) that each of these is meant."""


class Candidates:
    """All that may be meant by the last of some clicks."""

    def __init__(
        self,
        superpixels: Superpixels,
        outputs: Agreements,
        of_head: NDArray[np.float32],
        clicked: Clicked,
    ) -> None:
        """
        Args:
            outputs: of the model, laid on the superpixels.
            of_head: (K,) what it says of them.
        """
        self.outputs = outputs
        self._superpixels = superpixels
        self._of_head = of_head
        self.clicked = clicked
        self._atoms = superpixels.atoms[tuple(np.transpose(clicked.places_xy)[::-1])]
        self._distances = Distances.of(clicked.places_xy[-1], superpixels.atoms)
        self._around = superpixels.unions.around(int(self._atoms[-1]), self._distances)
        unions = superpixels.unions.masks(self._around.which)
        before, adds = clicked.before[:, None], clicked.labels[-1] == 1
        self._changes = unions & ~before if adds else unions & before
        self.masks = np.concatenate((outputs.masks, before ^ self._changes), axis=1)
        """(A, K + U)"""

    def known(self) -> Clicks:
        """What a scorer is told, as a batch of one."""
        num_outputs, areas = len(self._of_head), self._superpixels.areas
        made, regions = self.masks[:, :num_outputs], self.masks[:, num_outputs:]
        looks, facts = self._looks(made, regions), self._facts(made)
        numbers = looks, areas @ regions, facts, _ious(regions, made, areas)
        return Clicks(*(torch.from_numpy(one.astype(np.float32))[None] for one in numbers))

    def _looks(self, made: Mask, regions: Mask) -> Values:
        """(U, NUM_LOOKS) of the unions, of what they change, and of the masks they make."""
        areas, changes, around = self._superpixels.areas, self._changes, self._around
        changed, depth = areas @ changes, self._distances.depths(changes)
        in_outputs = (areas[:, None] * changes).T @ made / np.maximum(changed, 1)[:, None]
        return np.column_stack(
            (
                around.looks,
                np.log(changed / areas.sum() + LEAST_SHARE),
                changed / around.areas,
                np.log(depth + 1),
                depth / np.sqrt(np.maximum(changed, 1)),
                in_outputs,
                *self._after(regions),
            )
        )

    def _facts(self, made: Mask) -> Values:
        """(K, NUM_FACTS)"""
        areas, outputs = self._superpixels.areas, self.outputs
        return np.column_stack(
            (
                self._of_head,
                outputs.of_unions,
                outputs.of_segmentations.mean(axis=0),
                outputs.of_segmentations.min(axis=0),
                np.log(areas @ made / areas.sum() + LEAST_SHARE),
                made[self._atoms[-1]],
                np.eye(len(self._of_head)),
                *self._depth_in(made),
                *self._after(made),
            )
        )

    def _depth_in(self, masks: Mask) -> tuple[Values, ...]:
        """Three times (N,), see `depth_looks`: how deep the last click lies in what masks (A, N)
        add or take away as it asks."""
        before = self.clicked.before[:, None]
        changes = masks & ~before if self.clicked.labels[-1] else before & ~masks
        greatest = self._superpixels.greatest_depths(changes)
        return depth_looks(self._distances.depths(changes), greatest)

    def _after(self, masks: Mask) -> tuple[Values, ...]:
        """Four times (N,): clicks that masks (A, N) do not heed, their IoU with the mask before,
        what was clicked last and the number of clicks."""
        labels, before = np.array(self.clicked.labels), self.clicked.before[:, None]
        unheeded = (masks[self._atoms] != labels[:, None]).sum(axis=0)
        return (
            np.minimum(unheeded, MOST_UNHEEDED).astype(np.float64),
            _ious(before, masks, self._superpixels.areas)[0],
            np.full(masks.shape[1], float(labels[-1])),
            np.full(masks.shape[1], float(min(len(labels), MOST_CLICKS))),
        )

    def likeliest(self, number: int) -> Meant:
        """So many, the likeliest among them, and none that does not heed the last click while there
        are others."""
        known = self.known()
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            of_outputs, of_regions, chances = shipped_click_scorer()(known)
        worth = torch.cat((of_outputs, of_regions), dim=1)[0].sigmoid().numpy()
        sizes = self._superpixels.areas @ self.masks
        worth[sizes == 0] = 0
        heeds = self.masks[self._atoms[-1]] == self.clicked.labels[-1]
        with_regions = torch.cat((known.ious.transpose(1, 2), nested_ious(known.areas)), dim=1)
        meant = _Regions(with_regions[0].numpy(), chances[0].numpy())
        offered = self._unlike(np.where(heeds, worth, worth - UNHEEDED), meant, number)
        chosen = sorted(offered, key=lambda one: -sizes[one])
        outputs = tuple(one if one < len(self._of_head) else None for one in chosen)
        return Meant(self.masks[:, chosen], worth[chosen], outputs)

    def _unlike(self, worth: Values, meant: _Regions, number: int) -> list[int]:
        """The one of most worth, and then what adds most: regions that may be meant, which those
        before do not meet as well."""
        offered = [int(worth.argmax())]
        alike, met = np.zeros(len(worth)), np.zeros(len(meant.chances))
        while len(offered) < min(number, len(worth)):
            last = offered[-1]
            with_last = _ious(self.masks, self.masks[:, [last]], self._superpixels.areas)
            alike, met = np.maximum(alike, with_last[:, 0]), np.maximum(met, meant.ious[last])
            adds = np.maximum(meant.ious - met, 0) @ meant.chances
            promise = adds + WORTH * (worth - LIKENESS * alike)
            promise[offered] = -np.inf
            offered.append(int(promise.argmax()))
        return offered


def _ious(some: Mask, others: Mask, areas: Values) -> Values:
    """(N, M) of masks (A, N) with masks (A, M); 0 of two empty ones."""
    shared = (areas[:, None] * some).T @ others
    either = (areas @ some)[:, None] + areas @ others - shared
    ious: Values = shared / np.maximum(either, 1)
    return ious
