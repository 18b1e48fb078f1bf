"""What a click means: the worth of masks by the regions that hold it.

A click is ambiguous. The regions around it that edges put together, one within the other, are what
somebody may have meant to add or to take away, and where the click lies in each says much of how
likely: people click in the middle of things. So a small network weighs the masks that they make of
the mask so far against each other, and a mask is worth, above all, its expected IoU with the one
that is meant. What is likely depends on all that is around the click, so each is weighed beside a
few numbers seen of all (as in Deep Sets, Zaheer et al. 2017). The network comes with the package,
as the edge detector does, and is fed by `stages/click_answers.py`. Trained by
`python -m benchmarks.click_scorer`.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.shipped import sha256, shipped

WEIGHTS = Path(__file__).with_name("click_scorer.safetensors")

NUM_LOOKS = 20
"""Numbers of a region, of what it changes and of the mask it makes (`stages/click_answers.py`)."""
NUM_FACTS = 17
"""Numbers of an output, first of all what the model says of it."""
WIDTH = 32
NUM_SEEN = 8
"""Numbers that the network makes of each region, and of each output, for all others to know."""
DROPOUT = 0.1
FARTHEST = 4.0
"""Deviations from the mean; what is further away counts as so far."""

# Axes: B clicks, R regions around each, largest first, K outputs of the model, C looks, F facts.


class Clicks(NamedTuple):
    """What is known of some clicks, and of the masks that the regions around each make of the one
    before it. Clicks with fewer regions than others have more, whose masks are empty."""

    looks: Tensor
    """(B, R, C)"""
    areas: Tensor
    """(B, R) of the masks."""
    facts: Tensor
    """(B, K, F)"""
    ious: Tensor
    """(B, R, K) of the masks with outputs."""


class Worth(NamedTuple):
    of_outputs: Tensor
    """(B, K) logits of the IoU with what is meant."""
    of_regions: Tensor
    """(B, R) the same of the masks that the regions make."""
    chances: Tensor
    """(B, R) that the mask of a region is what is meant; at most 1 together."""


class ClickScorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.looks_mean, self.looks_deviation = _statistics(NUM_LOOKS)
        self.facts_mean, self.facts_deviation = _statistics(NUM_FACTS)
        relations, expectations, around = 3, 3, 4 * NUM_SEEN
        self.seen_of_region = _perceptron(NUM_LOOKS + relations, NUM_SEEN)
        self.seen_of_output = _perceptron(NUM_FACTS, NUM_SEEN)
        self.chance = _perceptron(NUM_LOOKS + relations + around, 1)
        self.of_region = _perceptron(NUM_LOOKS + relations + around + expectations, 1)
        self.of_output = _perceptron(NUM_FACTS + around + expectations, 1)

    def forward(self, clicks: Clicks) -> Worth:
        exists = clicks.areas > 0
        said = clicks.facts[..., 0]
        relations = (
            (clicks.ious * said[:, None]).amax(dim=-1),
            clicks.ious.amax(dim=-1),
            clicks.ious.mean(dim=-1),
        )
        looks = _standard(clicks.looks, self.looks_mean, self.looks_deviation)
        regions = torch.cat((looks, torch.stack(relations, dim=-1) * 4 - 2), dim=-1)
        facts = _standard(clicks.facts, self.facts_mean, self.facts_deviation)
        around = self._around(regions, exists, facts)
        regions, outputs = _beside(regions, around), _beside(facts, around)
        likely = self.chance(regions)[..., 0].masked_fill(~exists, -torch.inf)
        none_of_them = torch.zeros_like(likely[:, :1])
        chances = torch.cat((likely, none_of_them), dim=1).softmax(dim=1)[:, :-1]
        outputs = torch.cat((outputs, _expectations(chances, clicks.ious)), dim=-1)
        regions = torch.cat((regions, _expectations(chances, nested_ious(clicks.areas))), dim=-1)
        return Worth(self.of_output(outputs)[..., 0], self.of_region(regions)[..., 0], chances)

    def _around(self, regions: Tensor, exists: Tensor, facts: Tensor) -> Tensor:
        """(B, 4 x NUM_SEEN): of what is seen of all regions that there are, and of all outputs, the
        mean and the most."""
        of_regions = self.seen_of_region(regions).relu() * exists[..., None]
        of_outputs = self.seen_of_output(facts).relu()
        number = exists.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat(
            (
                of_regions.sum(dim=1) / number,
                of_regions.amax(dim=1),
                of_outputs.mean(dim=1),
                of_outputs.amax(dim=1),
            ),
            dim=-1,
        )

    def set_statistics(self, clicks: Clicks) -> None:
        """Of what it will be trained on."""
        exists = clicks.areas > 0
        for numbers, mean, deviation in (
            (clicks.looks[exists], self.looks_mean, self.looks_deviation),
            (clicks.facts.flatten(0, 1), self.facts_mean, self.facts_deviation),
        ):
            mean.data.copy_(numbers.mean(dim=0))
            deviation.data.copy_(numbers.std(dim=0).clamp(min=1e-3))


def _statistics(number: int) -> tuple[nn.Parameter, nn.Parameter]:
    return (
        nn.Parameter(torch.zeros(number), requires_grad=False),
        nn.Parameter(torch.ones(number), requires_grad=False),
    )


def _standard(numbers: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return ((numbers - mean) / deviation).clamp(-FARTHEST, FARTHEST)


def nested_ious(areas: Tensor) -> Tensor:
    """(B, R, R) of masks (B, R) that lie one within the other."""
    one, other = areas[:, :, None], areas[:, None]
    return torch.minimum(one, other) / torch.maximum(one, other).clamp(min=1e-9)


def _expectations(chances: Tensor, ious: Tensor) -> Tensor:
    """(B, N, 3): of IoUs (B, R, N) by the chances (B, R) of the regions, their sum and deviation;
    and the chance that it is any of them."""
    mean = torch.einsum("br,brn->bn", chances, ious)
    square = torch.einsum("br,brn->bn", chances, ious**2)
    deviation = (square - mean**2).clamp(min=1e-4).sqrt()
    total = chances.sum(dim=1, keepdim=True).expand_as(mean)
    return torch.stack((4 * mean - 1, 4 * deviation - 1, total), dim=-1)


def _beside(numbers: Tensor, around: Tensor) -> Tensor:
    """(B, N, C + D) of (B, N, C) and, for all N, (B, D)."""
    return torch.cat((numbers, around[:, None].expand(-1, numbers.shape[1], -1)), dim=-1)


def _perceptron(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, WIDTH),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, width_out),
    )


@cache
def click_scorer_sha256() -> str:
    """Of the weights that `shipped_click_scorer` has."""
    return sha256(WEIGHTS)


@cache
def shipped_click_scorer() -> ClickScorer:
    """In eval mode, fp32, on the CPU."""
    return shipped(ClickScorer, WEIGHTS)
