"""Where a person would draw an edge: a small convolutional network, for superpixels.

A U of residual blocks over five scales with an answer at each, as in Xie & Tu, "Holistically-Nested
Edge Detection" (2015); only the finest is used once it is trained. It knows nothing of prompts and
comes with the package, one for all checkpoints. Trained by `python -m benchmarks.edge_detector`.
"""

from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.shipped import sha256, shipped

WEIGHTS = Path(__file__).with_name("edge_detector.safetensors")

WIDTHS = (16, 32, 64, 96, 128)
"""Channels at strides 1, 2, 4, 8, 16."""
BLOCKS = (1, 2, 2, 2, 2)
COARSE_WIDTH, FINE_WIDTH = 32, 16
"""Channels on the way back, at strides 16 to 2 and at stride 1."""
STRIDE = 2 ** (len(WIDTHS) - 1)
FEW_EDGES = -2.5
"""Logit to begin with."""


class EdgeDetector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, WIDTHS[0])
        self.levels = nn.ModuleList()
        width = WIDTHS[0]
        for level, (out, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            first = Residual(width, out, stride=2 if level > 0 else 1)
            self.levels.append(
                nn.Sequential(first, *(Residual(out, out) for _ in range(blocks - 1)))
            )
            width = out
        back = (FINE_WIDTH, *(COARSE_WIDTH for _ in WIDTHS[1:]))
        self.laterals = nn.ModuleList(
            nn.Conv2d(*sizes, 1) for sizes in zip(WIDTHS, back, strict=True)
        )
        self.refines = nn.ModuleList(_conv(width, width) for width in back[:-1])
        self.narrow = nn.Conv2d(COARSE_WIDTH, FINE_WIDTH, 1)
        self.heads = nn.ModuleList(_head(width) for width in back)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) colours of 0 to 1, sides multiples of 16, to logits (B, 1, H, W)."""
        return self.at_all_scales(pixels)[-1]

    def at_all_scales(self, pixels: Tensor) -> list[Tensor]:
        """Logits at strides 16, 8, 4, 2 and 1."""
        found, features = self.stem((pixels - 0.5) / 0.25), []
        for level in self.levels:
            found = level(found)
            features.append(found)
        back = self.laterals[-1](features[-1])
        logits = [self.heads[-1](back)]
        for at in reversed(range(len(features) - 1)):
            back = _enlarged(back, features[at])
            if at == 0:
                back = self.narrow(back)
            back = self.refines[at](back + self.laterals[at](features[at]))
            logits.append(self.heads[at](back))
        return logits

    @torch.inference_mode()
    def strength(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of RGB (H, W, 3): about the share of people who would draw an edge at each pixel, by the
        mean of what is found there and in the mirror."""
        height, width = pixels.shape[:2]
        colours = torch.tensor(pixels).permute(2, 0, 1) / 255
        both = torch.stack((colours, colours.flip(-1)))
        padded = F.pad(both, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        with torch.autocast("cpu", enabled=False):
            logits = self(padded)
        found, mirrored = logits[:, 0, :height, :width].sigmoid()
        strength: NDArray[np.float32] = ((found + mirrored.flip(-1)) / 2).numpy()
        return strength


class Residual(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv(width_in, width, stride)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.skip: nn.Module = nn.Identity()
        if (width_in, stride) != (width, 1):
            project = nn.Conv2d(width_in, width, 1, bias=False)
            self.skip = nn.Sequential(nn.AvgPool2d(stride), project, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.skip(x))


@cache
def edge_detector_sha256() -> str:
    """Of the weights that `shipped_edge_detector` has."""
    return sha256(WEIGHTS)


@cache
def shipped_edge_detector() -> EdgeDetector:
    """In eval mode, fp32, on the CPU."""
    detector = shipped(EdgeDetector, WEIGHTS)
    return detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _conv(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _head(width: int) -> nn.Conv2d:
    head = nn.Conv2d(width, 1, 1)
    nn.init.constant_(cast(Tensor, head.bias), FEW_EDGES)
    return head


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
