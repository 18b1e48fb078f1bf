"""Losses of mask logits against masks, each one number per output.

Axes: P prompts, M masks per prompt, (h, w) the grid on which logits and targets meet. Every
function takes `logits` (P, M, h, w), `targets` (P, h, w) bool and `valid` (P, h, w) bool, counts
valid pixels only (the rest is padding), and returns (P, M).
"""

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


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    truth = targets[:, None].to(logits.dtype).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum((-2, -1)) / counted.sum((-2, -1)).clamp(min=1)
