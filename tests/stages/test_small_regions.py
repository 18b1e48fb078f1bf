import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from fakes import rectangle
from stages.prompts import largest_component
from stages.rle import Mask, decode_rle, encode_rle
from stages.small_regions import clean_rle

SIZE_HW = (60, 80)


def small_components(region: Mask, min_area: int) -> Mask:
    labels, _ = ndimage.label(region, structure=np.ones((3, 3)))
    small = np.bincount(labels.ravel()) < min_area
    small[0] = False
    return np.asarray(small[labels])


def cleaned_as_drawn(mask: Mask, min_area: int, drop_small: bool) -> Mask:
    filled = mask | small_components(~mask, min_area)
    cleaned = filled & ~small_components(filled, min_area)
    return cleaned if cleaned.any() or drop_small else largest_component(filled)


def cleaned(mask: Mask, min_area: int = 100, *, drop_small: bool = True) -> Mask | None:
    rle = clean_rle(encode_rle(mask), min_area, drop_small=drop_small)
    return None if rle is None else decode_rle(rle)


@given(
    arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=14)),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.integers(1, 12),
    st.booleans(),
)
@example(np.ones((4, 3), dtype=bool), (0, 0, 0, 0), 5, True)
@example(np.eye(5, dtype=bool), (0, 0, 0, 0), 5, True)  # corners connect what is mask
@example(~np.eye(5, dtype=bool), (0, 0, 0, 0), 5, True)  # and what is not
@example(np.eye(4, 3, dtype=bool)[::2], (0, 0, 1, 1), 9, False)  # two that are equally small
def test_runs_are_cleaned_as_the_drawn_mask_would_be(
    part: Mask, around: tuple[int, int, int, int], min_area: int, drop_small: bool
) -> None:
    above, below, before, after = around
    mask = np.pad(part, ((above, below), (before, after)))
    expected = cleaned_as_drawn(mask, min_area, drop_small)
    found = cleaned(mask, min_area, drop_small=drop_small)
    assert np.array_equal(np.zeros_like(mask) if found is None else found, expected)


@pytest.mark.parametrize("seed", range(5))
def test_large_ragged_masks_are_cleaned_as_drawn(seed: int) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(300, 420)), 2.0)
    mask = np.asarray(noise > 0)
    for min_area in (10, 100, 1000):
        found = cleaned(mask, min_area)
        assert found is not None
        assert np.array_equal(found, cleaned_as_drawn(mask, min_area, drop_small=True))


def test_small_holes_are_filled_and_small_specks_removed() -> None:
    solid = rectangle(SIZE_HW, 10, 10, 40, 40)
    holed = solid & ~rectangle(SIZE_HW, 20, 20, 24, 24)
    specked = holed | rectangle(SIZE_HW, 50, 60, 53, 63)
    found = cleaned(specked)
    assert found is not None
    assert np.array_equal(found, solid)


def test_a_mask_without_small_regions_is_given_back_as_it_is() -> None:
    mask = rectangle(SIZE_HW, 5, 5, 45, 45) & ~rectangle(SIZE_HW, 15, 15, 30, 30)
    mask |= rectangle(SIZE_HW, 20, 60, 40, 75)
    rle = encode_rle(mask)
    assert clean_rle(rle, 100, drop_small=True) is rle


def test_a_mask_of_specks_is_dropped_or_keeps_its_largest() -> None:
    larger, smaller = rectangle(SIZE_HW, 2, 2, 9, 9), rectangle(SIZE_HW, 30, 30, 33, 33)
    assert cleaned(larger | smaller) is None
    kept = cleaned(larger | smaller, drop_small=False)
    assert kept is not None
    assert np.array_equal(kept, larger)


@pytest.mark.parametrize("drop_small", [True, False])
def test_nothing_stays_of_an_empty_mask(drop_small: bool) -> None:
    assert cleaned(np.zeros(SIZE_HW, dtype=bool), drop_small=drop_small) is None


def test_a_single_small_component_counts_as_changed_as_officially() -> None:
    """So that of it and a mask like it that is large enough, NMS keeps that one."""
    rle = encode_rle(rectangle(SIZE_HW, 2, 2, 9, 9))
    kept = clean_rle(rle, 100, drop_small=False)
    assert kept == rle
    assert kept is not rle
