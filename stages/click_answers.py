"""Three answers to one click: the likeliest of the model's masks and of the regions that hold it.

The model's three outputs say roughly where things are, the unions of superpixels around the click
where things end; what each is worth, as the thing that is meant, says `model/click_scorer.py`.
Those offered are unlike each other, the largest first: whole, part, subpart. Measured in
docs/log.md.
"""

# Axes: N masks, A atoms, K outputs of the model, U unions around the click, s the side of logits.

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.click_scorer import Clicks, shipped_click_scorer
from stages.rle import Mask
from stages.superpixels import Agreements, Superpixels
from stages.unions import Values

NUM_OFFERED = 3
ALIKE = 0.5
"""IoU from which on, of two masks, only the one of more worth is offered."""
LEAST_SHARE = 1e-4
"""Of the image; what is smaller counts as so large where logarithms are taken."""


class Meant(NamedTuple):
    """Masks that may be meant, largest first."""

    masks: Mask
    """(A, N)"""
    predicted_iou: NDArray[np.float32]
    """(N,)"""
    outputs: tuple[int | None, ...]
    """Which of the model's each is; None: it is a union."""


class Click:
    """One click, and all that may be meant by it."""

    def __init__(
        self,
        superpixels: Superpixels,
        outputs: Agreements,
        of_head: NDArray[np.float32],
        place_xy: tuple[int, int],
    ) -> None:
        """
        Args:
            outputs: of the model, laid on the superpixels.
            of_head: (K,) what it says of them.
            place_xy: in the work frame.
        """
        self.outputs = outputs
        self._superpixels = superpixels
        self._of_head = of_head
        self._atom = superpixels.atoms[place_xy[1], place_xy[0]]
        self._around = superpixels.unions.around(place_xy)

    def masks(self) -> Mask:
        """(A, K + U)"""
        unions = self._superpixels.unions.masks(self._around.which)
        return np.concatenate((self.outputs.masks, unions), axis=1)

    def known(self) -> Clicks:
        """What a scorer is told, as a batch of one."""
        outputs, around, areas = self.outputs, self._around, self._superpixels.areas
        facts = (
            self._of_head,
            outputs.of_unions,
            outputs.of_segmentations.mean(axis=0),
            outputs.of_segmentations.min(axis=0),
            np.log(areas @ outputs.masks / areas.sum() + LEAST_SHARE),
            outputs.masks[self._atom],
        )
        ious = self._superpixels.unions.ious(outputs.masks)[around.which]
        numbers = around.looks, around.areas, np.stack(facts, axis=1), ious
        return Clicks(*(torch.from_numpy(one.astype(np.float32))[None] for one in numbers))

    def meant(self) -> Meant:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            worth = torch.cat(shipped_click_scorer()(self.known()), dim=1)[0].sigmoid().numpy()
        masks, areas = self.masks(), self._superpixels.areas
        sizes = areas @ masks
        worth[sizes == 0] = 0
        chosen = sorted(_likeliest(worth, masks, areas), key=lambda one: -sizes[one])
        outputs = tuple(one if one < len(self._of_head) else None for one in chosen)
        return Meant(masks[:, chosen], worth[chosen], outputs)


def _likeliest(worth: NDArray[np.float32], masks: Mask, areas: Values) -> list[int]:
    """Of most worth first; of those that are like a better one, as many as are missing."""
    order = np.argsort(-worth, kind="stable").tolist()
    offered: list[int] = []
    for one in order:
        if len(offered) < NUM_OFFERED and all(
            _iou(masks[:, one], masks[:, other], areas) <= ALIKE for other in offered
        ):
            offered.append(one)
    others = [one for one in order if one not in offered]
    return offered + others[: NUM_OFFERED - len(offered)]


def _iou(one: Mask, other: Mask, areas: Values) -> float:
    """1 for two empty masks."""
    either = float(areas @ (one | other))
    return float(areas @ (one & other)) / either if either else 1.0
