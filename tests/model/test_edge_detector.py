from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from model import edge_detector
from model.edge_detector import EdgeDetector, shipped_edge_detector


def test_edges_are_found_where_things_end_and_not_in_their_grain() -> None:
    rows, columns = np.indices((200, 300))
    disc = np.hypot(rows - 90, columns - 160) < 60
    pixels = np.where(disc[..., None], (190, 120, 70), (60, 110, 150))
    pixels = (pixels + np.random.default_rng(0).integers(-12, 13, pixels.shape)).clip(0, 255)
    strength = shipped_edge_detector().strength(pixels.astype(np.uint8))
    distance = np.abs(np.hypot(rows - 90, columns - 160) - 60)
    ridge = ndimage.maximum_filter(strength, 5)[distance < 1]
    assert np.median(ridge) > 0.5
    assert strength[distance > 8].mean() < 0.05


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 512), (512, 3), (37, 61)])
def test_every_pixel_has_a_strength_whatever_the_size(size_hw: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    strength = shipped_edge_detector().strength(pixels)
    assert strength.shape == size_hw
    assert np.isfinite(strength).all()
    assert (strength >= 0).all()
    assert (strength <= 1).all()


def test_in_the_mirror_edges_are_where_they_were() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 53, 3), dtype=np.uint8)
    strength, mirrored = map(shipped_edge_detector().strength, (pixels, pixels[:, ::-1].copy()))
    assert mirrored[:, ::-1] == pytest.approx(strength, abs=1e-5)
    assert np.abs(mirrored - strength).max() > 0.01


def test_each_scale_answers_at_its_stride() -> None:
    scales = EdgeDetector().eval().at_all_scales(torch.rand(2, 3, 64, 96))
    assert [tuple(logits.shape) for logits in scales] == [
        (2, 1, 64 // stride, 96 // stride) for stride in (16, 8, 4, 2, 1)
    ]


def test_weights_that_were_cut_off_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "edge_detector.safetensors"
    cut.write_bytes(edge_detector.WEIGHTS.read_bytes()[:5000])
    monkeypatch.setattr(edge_detector, "WEIGHTS", cut)
    with pytest.raises(ValueError, match=f"{cut} is damaged or cut off"):
        shipped_edge_detector.__wrapped__()
