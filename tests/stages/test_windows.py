import numpy as np
import pytest
import torch
from torch import Tensor

from model.transforms import ResizeLongestSide
from stages.windows import Window, WindowedUpscale

IMAGE_SIZE = 256
LOW_RES = IMAGE_SIZE // 4
SIZES = [(300, 200), (200, 300), (256, 256), (40, 50), (1, 1), (7, 900), (900, 7), (2000, 20)]


def noise(seed: int = 0) -> Tensor:
    return torch.randn(LOW_RES, LOW_RES, generator=torch.Generator().manual_seed(seed)) * 5


def blob(y: int, x: int, radius: float) -> Tensor:
    """Logits of a disc, far below zero outside."""
    rows, columns = torch.meshgrid(torch.arange(LOW_RES), torch.arange(LOW_RES), indexing="ij")
    return radius - torch.hypot((rows - y).float(), (columns - x).float())


@pytest.mark.parametrize("size_hw", SIZES)
def test_a_window_over_everything_equals_the_upscale_of_the_whole_frame(
    size_hw: tuple[int, int],
) -> None:
    transform = ResizeLongestSide(size_hw, IMAGE_SIZE)
    logits = noise()
    window = WindowedUpscale(transform).window(logits, level=-100.0)
    assert window is not None
    assert window.offset_xy == (0, 0)
    assert torch.allclose(window.logits, transform.upscale(logits), atol=1e-4)


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("level", [-4.0, 0.0])
def test_a_window_equals_its_part_of_the_frame_and_misses_no_pixel_above_the_level(
    size_hw: tuple[int, int], level: float
) -> None:
    transform = ResizeLongestSide(size_hw, IMAGE_SIZE)
    height_input, width_input = transform.size_hw_input
    logits = blob(height_input // 8, width_input // 8, radius=2.5)
    whole = transform.upscale(logits)
    window = WindowedUpscale(transform).window(logits, level=level)
    assert window is not None
    (x, y), (h, w) = window.offset_xy, window.logits.shape
    assert torch.allclose(window.logits, whole[y : y + h, x : x + w], atol=1e-4)
    outside = whole.clone()
    outside[y : y + h, x : x + w] = -100
    assert not (outside > level).any()


def test_a_small_object_has_a_small_window() -> None:
    upscale = WindowedUpscale(ResizeLongestSide((1000, 800), IMAGE_SIZE))
    window = upscale.window(blob(20, 30, radius=2.5), level=-1.0)
    assert window is not None
    assert max(window.logits.shape) < 200


def test_logits_below_the_level_have_no_window() -> None:
    upscale = WindowedUpscale(ResizeLongestSide((30, 40), IMAGE_SIZE))
    assert upscale.window(torch.full((LOW_RES, LOW_RES), -2.0), level=-1.0) is None


def test_what_lies_in_the_padding_alone_has_no_window() -> None:
    upscale = WindowedUpscale(ResizeLongestSide((100, 200), IMAGE_SIZE))
    logits = torch.full((LOW_RES, LOW_RES), -9.0)
    logits[LOW_RES // 2 + 4 :] = 9.0
    assert upscale.window(logits, level=-1.0) is None


def test_the_mask_is_what_exceeds_the_threshold() -> None:
    window = Window(torch.tensor([[-1.0, 0.0], [0.5, 2.0]]), (0, 0))
    assert np.array_equal(window.mask(0.0), [[False, False], [True, True]])


def test_stability_is_the_iou_of_the_mask_cut_at_both_levels() -> None:
    window = Window(torch.tensor([-2.0, -0.5, 0.5, 1.5, 3.0])[None], (0, 0))
    assert window.stability(0.0, 1.0) == 2 / 4


def test_an_empty_mask_is_not_stable_at_all() -> None:
    assert Window(torch.full((3, 3), -5.0), (0, 0)).stability(0.0, 1.0) == 0
