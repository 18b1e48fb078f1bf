from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.crops import crop_layers

PAPER_OVERLAP = 512 / 1500


def test_the_paper_looks_at_a_photograph_through_21_windows() -> None:
    crops = crop_layers((1500, 2250), num_layers=2, overlap_ratio=PAPER_OVERLAP)
    assert Counter(crop.layer for crop in crops) == {0: 1, 1: 4, 2: 16}
    assert crops[0].box_xyxy == (0, 0, 2250, 1500)
    # 512 pixels of overlap in layer 1: (512 + 1500) / 2 high, (512 + 2250) / 2 wide.
    assert crops[1].size_hw == (1006, 1381)
    assert crops[-1].box_xyxy[2:] == (2250, 1500)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 3), st.floats(0, 0.6))
def test_every_layer_covers_the_image_with_distinct_windows_inside_it(
    height: int, width: int, num_layers: int, overlap_ratio: float
) -> None:
    crops = crop_layers((height, width), num_layers=num_layers, overlap_ratio=overlap_ratio)
    for layer in range(num_layers + 1):
        windows = [crop for crop in crops if crop.layer == layer]
        assert len({crop.box_xyxy for crop in windows}) == len(windows) <= 4**layer
        covered = np.zeros((height, width), dtype=bool)
        for crop in windows:
            x0, y0, x1, y1 = crop.box_xyxy
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            covered[y0:y1, x0:x1] = True
        assert covered.all()


@pytest.mark.parametrize(("layer", "overlap"), [(1, 512), (2, 256)])
def test_neighbours_overlap_by_half_as_much_in_each_layer(layer: int, overlap: int) -> None:
    crops = crop_layers((1500, 2250), num_layers=2, overlap_ratio=PAPER_OVERLAP)
    spans = sorted({(c.box_xyxy[0], c.box_xyxy[2]) for c in crops if c.layer == layer})
    shared = [end - start for (_, end), (start, _) in pairwise(spans)]
    assert all(overlap <= pixels <= overlap + 2 * 2**layer for pixels in shared)


def test_a_pixel_has_one_window_in_every_layer() -> None:
    crops = crop_layers((1, 1), num_layers=2, overlap_ratio=PAPER_OVERLAP)
    assert [crop.box_xyxy for crop in crops] == [(0, 0, 1, 1)] * 3


def test_cutting_gives_the_pixels_of_the_box() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    crop = crop_layers((6, 8), num_layers=1, overlap_ratio=0.0)[4]
    assert crop.box_xyxy == (4, 3, 8, 6)
    assert np.array_equal(crop.cut(pixels), pixels[3:, 4:])
    assert crop.area == 12
