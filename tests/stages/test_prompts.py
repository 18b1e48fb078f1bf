import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fakes import rectangle
from stages.prompts import centre_click, error_region, largest_component, mask_iou, point_grid
from stages.rle import Mask

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))
pairs = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


def test_a_grid_puts_a_point_at_the_centre_of_every_cell() -> None:
    points = point_grid(2, (100, 200))
    assert points.tolist() == [[50, 25], [150, 25], [50, 75], [150, 75]]


@pytest.mark.parametrize("size_hw", [(1, 1), (7, 900), (20_000, 200)])
def test_every_point_of_a_grid_lies_in_the_frame(size_hw: tuple[int, int]) -> None:
    points = point_grid(32, size_hw)
    assert len(points) == 32**2
    assert (points > 0).all()
    assert (points < size_hw[::-1]).all()


def test_the_centre_of_a_rectangle_is_clicked_in_the_middle() -> None:
    assert centre_click(rectangle((50, 60), 10, 20, 21, 31)) == (25, 15)


def test_the_border_of_the_frame_counts_as_outside() -> None:
    assert centre_click(np.ones((9, 9), dtype=bool)) == (4, 4)


def test_a_ring_is_clicked_on_the_ring_and_not_in_its_hole() -> None:
    ring = rectangle((30, 30), 2, 2, 28, 28) & ~rectangle((30, 30), 8, 8, 22, 22)
    x, y = centre_click(ring)
    assert ring[int(y), int(x)]


@given(masks.filter(lambda mask: bool(mask.any())))
def test_a_click_lands_within_its_region(mask: Mask) -> None:
    x, y = centre_click(mask)
    assert mask[int(y), int(x)]


def test_an_empty_region_cannot_be_clicked() -> None:
    with pytest.raises(ValueError, match="empty region"):
        centre_click(np.zeros((4, 4), dtype=bool))


def test_the_largest_component_is_kept_and_corners_connect() -> None:
    diagonal = np.eye(6, dtype=bool)
    speck = np.zeros((6, 6), dtype=bool)
    speck[5, 0] = True
    assert np.array_equal(largest_component(diagonal | speck), diagonal)


def test_the_larger_error_decides_between_missed_and_spilled() -> None:
    truth = rectangle((20, 40), 5, 5, 15, 15)
    missing = rectangle((20, 40), 5, 5, 15, 12)
    spilled = truth | rectangle((20, 40), 0, 30, 20, 40)
    region, label = error_region(missing, truth) or pytest.fail("no error found")
    assert label == 1
    assert np.array_equal(region, rectangle((20, 40), 5, 12, 15, 15))
    region, label = error_region(spilled & ~rectangle((20, 40), 5, 5, 6, 6), truth) or pytest.fail(
        "no error found"
    )
    assert label == 0
    assert np.array_equal(region, rectangle((20, 40), 0, 30, 20, 40))


@given(pairs)
def test_mending_the_error_never_makes_the_mask_worse(pair: tuple[Mask, Mask]) -> None:
    mask, truth = pair
    error = error_region(mask, truth)
    if error is None:
        assert np.array_equal(mask, truth)
    else:
        region, label = error
        mended = mask | region if label else mask & ~region
        assert (mended ^ truth).sum() == (mask ^ truth).sum() - region.sum()


def test_two_empty_masks_agree() -> None:
    nothing = np.zeros((3, 3), dtype=bool)
    assert mask_iou(nothing, nothing) == 1
    assert mask_iou(nothing, ~nothing) == 0
