"""Drawn micrographs: exact, repeatable, and of many small things alike."""

import numpy as np
import pytest

from engine.micrographs import draw_micrograph
from engine.scenes import Scene

SIZE = (192, 256)


@pytest.fixture(scope="module")
def micrographs() -> list[Scene]:
    return [draw_micrograph(5, index, SIZE) for index in range(12)]


def test_same_number_gives_the_same_micrograph(micrographs: list[Scene]) -> None:
    again = draw_micrograph(5, 7, SIZE)
    assert np.array_equal(again.pixels, micrographs[7].pixels)
    assert len(again.masks) == len(micrographs[7].masks)
    assert all(np.array_equal(a, b) for a, b in zip(again.masks, micrographs[7].masks, strict=True))
    assert not np.array_equal(micrographs[0].pixels, micrographs[1].pixels)


def test_micrographs_are_full_of_small_cells(micrographs: list[Scene]) -> None:
    assert min(len(scene.masks) for scene in micrographs) >= 8
    shares = [mask.mean() for scene in micrographs for mask in scene.masks]
    assert 0.0005 < np.median(shares) < 0.02
    assert max(shares) < 0.1


def test_no_two_cells_share_a_pixel_and_none_is_hidden(micrographs: list[Scene]) -> None:
    for scene in micrographs:
        assert scene.pixels.shape == (*SIZE, 3)
        assert np.sum(scene.masks, axis=0).max() == 1
        assert all(mask.any() for mask in scene.masks)
        assert scene.parents == (None,) * len(scene.masks)


def test_cells_stand_out_in_some_micrographs_and_hardly_in_others(
    micrographs: list[Scene],
) -> None:
    contrasts = []
    for scene in micrographs:
        grey, cells = scene.pixels.mean(axis=2), np.any(scene.masks, axis=0)
        contrasts.append(grey[cells].mean() - grey[~cells].mean())
    assert min(contrasts) < -10  # stained
    assert max(contrasts) > 10  # fluorescent


def test_odd_sizes_can_be_drawn() -> None:
    for size in ((33, 200), (64, 64), (201, 97)):
        assert draw_micrograph(1, 0, size).pixels.shape == (*size, 3)
