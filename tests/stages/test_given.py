import numpy as np
import pytest
import torch

from fakes import rectangle
from model.transforms import ResizeLongestSide
from stages.given import SURE, given_logits
from stages.prompts import mask_iou


@pytest.mark.parametrize("size_hw", [(200, 300), (300, 200), (1500, 2250), (40, 900)])
def test_the_model_is_shown_a_mask_as_it_is(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    mask = rectangle(size_hw, height // 4, width // 3, 3 * height // 4, 2 * width // 3)
    transform = ResizeLongestSide(size_hw, 512)
    logits = given_logits(mask, transform)
    assert logits.shape == (128, 128)
    assert (logits.min(), logits.max()) == (-SURE, SURE)
    assert mask_iou((transform.upscale(logits) > 0).numpy(), mask) > 0.93


def test_an_image_without_the_object_is_outside() -> None:
    logits = given_logits(np.zeros((30, 50), dtype=bool), ResizeLongestSide((30, 50), 256))
    assert torch.equal(logits, torch.full((64, 64), -SURE))
