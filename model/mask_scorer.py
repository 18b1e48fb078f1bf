"""How much a mask looks like what people draw on photographs: a few numbers in, its IoU out.

As the MaskIoU head of Huang et al., "Mask Scoring R-CNN" (2019), a second opinion on a mask that
was made; it knows nothing of the prompt. It is a perceptron of two hidden layers that comes with
the package, as the edge detector does, and is fed by `stages/snapped_upscale.py`. Trained by
`python -m benchmarks.mask_scorer`.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.shipped import sha256, shipped

WEIGHTS = Path(__file__).with_name("mask_scorer.safetensors")

NUM_FEATURES = 16
WIDTH = 64
DROPOUT = 0.1
FARTHEST = 4.0
"""Deviations from the mean; what is further away counts as so far."""

# Axes: N masks, F features.


class MaskScorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("deviation", torch.ones(NUM_FEATURES))
        self.layers = nn.Sequential(
            *_hidden(NUM_FEATURES, WIDTH), *_hidden(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) to logits (N,) of the IoU with the region, of all that people drew, most like the
        mask."""
        standard = ((features - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST)
        logits: Tensor = self.layers(standard)
        return logits[:, 0]

    @torch.inference_mode()
    def predicted_iou(self, features: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N, F) to IoUs (N,)."""
        with torch.autocast("cpu", enabled=False):
            logits = self(torch.from_numpy(features).float())
        ious: NDArray[np.float32] = logits.sigmoid().numpy()
        return ious


def _hidden(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width_in, width), nn.ReLU(), nn.Dropout(DROPOUT)


@cache
def mask_scorer_sha256() -> str:
    """Of the weights that `shipped_mask_scorer` has."""
    return sha256(WEIGHTS)


@cache
def shipped_mask_scorer() -> MaskScorer:
    """In eval mode, fp32, on the CPU."""
    return shipped(MaskScorer, WEIGHTS)
