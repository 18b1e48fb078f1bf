"""Mask losses against their formulas, and what padding and imbalance do to them."""

import math

import pytest
import torch
from torch import Tensor

from model.losses import (
    balanced_bce_loss,
    dice_loss,
    embedding_loss,
    focal_loss,
    mask_iou,
)

EVERYWHERE = torch.ones(1, 8, 8, dtype=torch.bool)


def half() -> Tensor:
    target = torch.zeros(1, 8, 8, dtype=torch.bool)
    target[:, :4] = True
    return target


def confident(mask: Tensor, logit: float = 20.0) -> Tensor:
    return torch.where(mask, logit, -logit)[:, None]


def test_focal_loss_follows_its_formula() -> None:
    logits = torch.full((1, 1, 8, 8), math.log(3.0))  # probability 0.75
    inside, outside = 0.25 * 0.25**2 * -math.log(0.75), 0.75 * 0.75**2 * -math.log(0.25)
    expected = (inside + outside) / 2
    assert focal_loss(logits, half(), EVERYWHERE).item() == pytest.approx(expected, rel=1e-5)


def test_dice_loss_follows_its_formula() -> None:
    logits = torch.zeros(1, 1, 8, 8)  # probability 0.5
    expected = 1 - (2 * 16 + 1) / (32 + 32 + 1)
    assert dice_loss(logits, half(), EVERYWHERE).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [focal_loss, balanced_bce_loss, dice_loss])
def test_a_perfect_answer_costs_nothing_and_its_opposite_much(loss: object) -> None:
    assert callable(loss)
    right = loss(confident(half()), half(), EVERYWHERE).item()
    wrong = loss(confident(~half()), half(), EVERYWHERE).item()
    assert right == pytest.approx(0.0, abs=1e-4)
    assert wrong > 0.9


def test_balanced_loss_gains_nothing_by_answering_nothing() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.bool)
    target[0, 0, 0] = True
    nothing, everything = torch.full((1, 1, 8, 8), -2.0), torch.full((1, 1, 8, 8), 2.0)
    balanced = [balanced_bce_loss(x, target, EVERYWHERE).item() for x in (nothing, everything)]
    focal = [focal_loss(x, target, EVERYWHERE).item() for x in (nothing, everything)]
    assert balanced[0] == pytest.approx(balanced[1])
    assert focal[0] < 0.1 * focal[1]


@pytest.mark.parametrize("function", [focal_loss, balanced_bce_loss, dice_loss, mask_iou])
def test_padding_does_not_count(function: object) -> None:
    assert callable(function)
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 8, 8), torch.rand(1, 8, 8) > 0.5
    valid = EVERYWHERE.clone()
    valid[:, :, 5:] = False
    other_logits, other_target = logits.clone(), target.clone()
    other_logits[..., 5:], other_target[..., 5:] = 7.0, True
    torch.testing.assert_close(
        function(logits, target, valid), function(other_logits, other_target, valid)
    )


def test_iou_is_that_of_the_thresholded_outputs() -> None:
    top_quarter = half()
    top_quarter[:, 2:] = False
    logits = torch.cat([confident(m) for m in (half(), top_quarter, ~half())], dim=1)
    torch.testing.assert_close(mask_iou(logits, half(), EVERYWHERE), torch.tensor([[1.0, 0.5, 0]]))


def test_gradients_stay_finite_at_extreme_logits() -> None:
    logits = torch.tensor([-1e4, 1e4, 0.0, 1e-8]).repeat(16).reshape(1, 1, 8, 8).requires_grad_()
    total = sum(
        f(logits, half(), EVERYWHERE).sum() for f in (focal_loss, balanced_bce_loss, dice_loss)
    )
    assert isinstance(total, Tensor)
    total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_loss_of_embeddings_is_the_plain_sum_with_its_gradient() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 16, 16)).requires_grad_()
    targets, valid = torch.rand(5, 16, 16) > 0.7, torch.ones(5, 16, 16, dtype=torch.bool)
    valid[:, 12:] = False
    weights = torch.rand(5)
    plain = balanced_bce_loss(logits[:, None], targets, valid)
    plain = (plain + dice_loss(logits[:, None], targets, valid))[:, 0]
    inside, outside = ((side & valid).flatten(1).float() for side in (targets, ~targets))
    quick, iou = embedding_loss(logits.flatten(1), inside, outside)
    assert torch.allclose(quick, plain, atol=1e-5)
    assert torch.equal(iou, mask_iou(logits[:, None], targets, valid)[:, 0])
    by_plain = torch.autograd.grad((plain * weights).sum(), logits)[0]
    by_quick = torch.autograd.grad((quick * weights).sum(), logits)[0]
    assert torch.allclose(by_quick, by_plain, atol=1e-7)
