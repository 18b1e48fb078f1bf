"""Losses of mask logits against masks, each one number per output.

Axes: P prompts, M masks per prompt, (h, w) the grid on which logits and targets meet. Every
function takes `logits` (P, M, h, w), `targets` (P, h, w) bool and `valid` (P, h, w) bool, counts
valid pixels only (the rest is padding), and returns (P, M).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy in which pixels that are already right hardly count; mean over pixels.

    Args:
        alpha: weight of the pixels within the target; those outside weigh 1 - alpha.
    """
    cross_entropy = _cross_entropy(logits, targets)
    wrongness = 1 - torch.exp(-cross_entropy)  # 1 - the probability given to the truth
    weight = torch.where(targets, alpha, 1 - alpha)[:, None]
    return _mean(weight * wrongness**gamma * cross_entropy, valid[:, None])


def balanced_bce_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy in which inside and outside of the target weigh the same, however small it is.

    A network that knows nothing yet does best under the focal loss by answering nothing at all;
    here it gains nothing by that.
    """
    cross_entropy = _cross_entropy(logits, targets)
    inside, outside = (targets & valid)[:, None], (~targets & valid)[:, None]
    return (_mean(cross_entropy, inside) + _mean(cross_entropy, outside)) / 2


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """1 - soft dice, with 1 added to both sides of the fraction."""
    probability = logits.sigmoid() * valid[:, None]
    truth = (targets & valid)[:, None].to(probability.dtype)
    overlap = (probability * truth).sum((-2, -1))
    total = probability.sum((-2, -1)) + truth.sum((-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_iou(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """IoU of the thresholded logits with the target: what the IoU head should say. No gradient."""
    predicted = (logits.detach() > 0) & valid[:, None]
    truth = (targets & valid)[:, None]
    union = (predicted | truth).sum((-2, -1))
    return (predicted & truth).sum((-2, -1)) / union.clamp(min=1)


class EmbeddingLoss(torch.autograd.Function):
    """`balanced_bce_loss + dice_loss`, and `mask_iou`, of one output per target, in few passes.

    Pixel embeddings ask for dozens of masks at three levels; written with the functions above, half
    of a training step on a CPU went into reading and writing such tensors.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the valid pixels in and out of the targets, as 0 and 1, all (N, pixels)."""
        num_inside = inside.sum(1)
        weight_in = inside / (2 * num_inside.clamp(min=1))[:, None]
        weight = weight_in + outside / (2 * outside.sum(1).clamp(min=1))[:, None]
        probability = logits.sigmoid()
        bce = _dots(F.softplus(logits), weight) - _dots(logits, weight_in)
        overlap = _dots(probability, inside)
        total = overlap + _dots(probability, outside) + num_inside
        ctx.save_for_backward(probability, inside, outside, weight, weight_in, overlap, total)
        predicted = (logits > 0).to(logits.dtype)
        hits = _dots(predicted, inside)
        iou = hits / (num_inside + _dots(predicted, outside)).clamp(min=1)
        ctx.mark_non_differentiable(iou)
        return bce + 1 - (2 * overlap + 1) / (total + 1), iou

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        probability, inside, outside, weight, weight_in, overlap, total = ctx.saved_tensors
        spread = ((2 * overlap + 1) / (total + 1).square())[:, None]
        slope = torch.addcmul(inside * (spread - 2 / (total + 1)[:, None]), outside, spread)
        slope = slope.mul_(1 - probability).add_(weight).mul_(probability).sub_(weight_in)
        return slope.mul_(by_loss[:, None]), None, None


def embedding_loss(logits: Tensor, inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and IoU (N,) of logits against targets, all (N, pixels); see `EmbeddingLoss`."""
    found: tuple[Tensor, Tensor]
    found = EmbeddingLoss.apply(logits, inside, outside)  # type: ignore[no-untyped-call]
    return found


def keep_layout(images: Tensor) -> None:
    """See to it that the gradient of (B, C, H, W) arrives channels last, as convolutions want it.

    What is behind them gives it in another order, in which a whole walk back costs a fifth more.
    """
    if images.requires_grad:
        images.register_hook(_channels_last)  # type: ignore[no-untyped-call]


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """(N, pixels) twice -> (N,): the scalar product of every row."""
    return (a * b).sum(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    truth = targets[:, None].to(logits.dtype).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum((-2, -1)) / counted.sum((-2, -1)).clamp(min=1)
