import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import stages.windows
from model.transforms import ResizeLongestSide
from stages.windows import WindowedUpscale

IMAGE_SIZE = 256
LOW_RES = IMAGE_SIZE // 4
SIZES = [
    (300, 200),
    (200, 300),
    (256, 256),
    (40, 50),
    (1, 1),
    (7, 900),
    (900, 7),
    (20_000, 200),
    (20_000, 200),
]


@pytest.fixture(autouse=True)
def narrow_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small images have many strips, too."""
    monkeypatch.setattr(stages.windows, "STRIP_PIXELS", 3000)


def noise(seed: int = 0, scale: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LOW_RES, LOW_RES, generator=generator) * scale


def blob(y: int, x: int, radius: float) -> Tensor:
    """Logits of a disc, far below zero outside."""
    rows, columns = torch.meshgrid(torch.arange(LOW_RES), torch.arange(LOW_RES), indexing="ij")
    return radius - torch.hypot((rows - y).float(), (columns - x).float())


def upscaled(size_hw: tuple[int, int]) -> tuple[ResizeLongestSide, WindowedUpscale]:
    transform = ResizeLongestSide(size_hw, IMAGE_SIZE)
    return transform, WindowedUpscale(transform)


def whole_mask(
    upscale: WindowedUpscale, logits: Tensor, threshold: float, size_hw: tuple[int, int]
) -> np.ndarray:
    mask = np.zeros(size_hw, dtype=bool)
    window = upscale.mask(logits, threshold=threshold)
    if window is not None:
        (x, y), (h, w) = window.offset_xy, window.mask.shape
        mask[y : y + h, x : x + w] = window.mask
    return mask


def assert_the_same(mask: np.ndarray, logits: Tensor, threshold: float) -> None:
    """Equal, but for pixels so near the threshold that rounding decides."""
    certain = ((logits - threshold).abs() > 1e-4).numpy()
    assert np.array_equal(mask[certain], (logits > threshold).numpy()[certain])


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("threshold", [-4.0, 0.0, 7.0])
def test_a_mask_is_that_of_the_whole_frame(size_hw: tuple[int, int], threshold: float) -> None:
    transform, upscale = upscaled(size_hw)
    h, w = transform.size_hw_input
    for logits in (noise(), blob(h // 8, w // 8, radius=2.5), noise(scale=100)):
        mask = whole_mask(upscale, logits, threshold, size_hw)
        assert_the_same(mask, transform.upscale(logits), threshold)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 99), st.floats(-3, 3))
def test_masks_of_any_size(height: int, width: int, seed: int, threshold: float) -> None:
    transform, upscale = upscaled((height, width))
    mask = whole_mask(upscale, noise(seed, 2.0), threshold, (height, width))
    assert_the_same(mask, transform.upscale(noise(seed, 2.0)), threshold)


def test_a_window_fits_its_mask() -> None:
    _, upscale = upscaled((1000, 800))
    window = upscale.mask(blob(20, 30, radius=2.5), threshold=0.0)
    assert window is not None
    assert max(window.mask.shape) < 100
    edges = (window.mask[0], window.mask[-1], window.mask[:, 0], window.mask[:, -1])
    assert all(edge.any() for edge in edges)


def test_logits_below_the_threshold_make_no_mask() -> None:
    _, upscale = upscaled((30, 40))
    low = torch.full((LOW_RES, LOW_RES), -2.0)
    assert upscale.mask(low, threshold=-1.0) is None
    assert np.isnan(upscale.stability(low[None], threshold=0.0, offset=1.0)).all()


def test_what_lies_in_the_padding_alone_makes_no_mask() -> None:
    _, upscale = upscaled((100, 200))
    logits = torch.full((LOW_RES, LOW_RES), -9.0)
    logits[LOW_RES // 2 + 4 :] = 9.0
    assert upscale.mask(logits, threshold=-1.0) is None


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("offset", [0.2, 1.0])
def test_stability_is_the_iou_of_the_masks_cut_at_both_levels(
    size_hw: tuple[int, int], offset: float
) -> None:
    transform, upscale = upscaled(size_hw)
    h, w = transform.size_hw_input
    masks = torch.stack([noise(), blob(h // 8, w // 8, radius=2.5), noise(1)])
    whole = transform.upscale(masks)
    inner, outer = ((whole > level).sum(dim=(1, 2)).numpy() for level in (offset, -offset))
    scores = upscale.stability(masks, threshold=0.0, offset=offset)
    assert np.isnan(scores).tolist() == (outer == 0).tolist()
    assert np.nan_to_num(scores) == pytest.approx(inner / np.maximum(outer, 1), abs=2e-3)


def test_no_masks_have_no_stability() -> None:
    _, upscale = upscaled((30, 40))
    nothing = torch.zeros(0, LOW_RES, LOW_RES)
    assert upscale.stability(nothing, threshold=0.0, offset=1.0).shape == (0,)
