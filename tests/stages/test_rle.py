import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from stages.records import Rle
from stages.rle import (
    Mask,
    decode_rle,
    encode_rle,
    encode_window,
    rle_area,
    rle_bbox,
    rle_from_polygons,
    rle_from_uncompressed,
    rle_iou,
    rle_runs,
)

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20))


def one_pixel(size_hw: tuple[int, int], y: int, x: int) -> Mask:
    mask = np.zeros(size_hw, dtype=bool)
    mask[y, x] = True
    return mask


EXTREMES = {
    "empty": np.zeros((7, 5), dtype=bool),
    "full": np.ones((7, 5), dtype=bool),
    "first pixel": one_pixel((7, 5), 0, 0),
    "last pixel": one_pixel((7, 5), 6, 4),
    "1x1 set": np.ones((1, 1), dtype=bool),
    "1x1 clear": np.zeros((1, 1), dtype=bool),
    "one row": one_pixel((1, 30), 0, 17),
    "one column": one_pixel((30, 1), 17, 0),
    "checkerboard": np.indices((9, 8)).sum(axis=0) % 2 == 1,
}


@given(masks)
def test_decoding_what_was_encoded_gives_the_mask_back(mask: Mask) -> None:
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_masks_survive_the_round_trip_and_are_measured_right(name: str) -> None:
    mask = EXTREMES[name]
    rle = encode_rle(mask)
    assert rle.size == mask.shape
    assert np.array_equal(decode_rle(rle), mask)
    assert rle_area(rle) == mask.sum()


def test_counts_are_those_of_pycocotools() -> None:
    mask = np.random.default_rng(0).random((40, 30)) < 0.4
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask).counts == theirs["counts"].decode()


def test_a_mask_that_is_a_view_is_encoded_as_it_is_seen() -> None:
    whole = np.random.default_rng(1).random((20, 30)) < 0.5
    view = whole[3:17:2, ::-1].T
    assert encode_rle(view) == encode_rle(view.copy())


@st.composite
def windows(draw: st.DrawFn) -> tuple[Mask, tuple[int, int], tuple[int, int]]:
    """A window, where it lies, and the frame that holds it."""
    window = draw(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)))
    before_y, after_y, before_x, after_x = (draw(st.integers(0, 4)) for _ in range(4))
    h, w = window.shape
    return window, (before_x, before_y), (before_y + h + after_y, before_x + w + after_x)


def drawn_whole(window: Mask, offset_xy: tuple[int, int], size_hw: tuple[int, int]) -> Mask:
    (x, y), (h, w) = offset_xy, window.shape
    whole = np.zeros(size_hw, dtype=bool)
    whole[y : y + h, x : x + w] = window
    return whole


@given(windows())
def test_encoding_a_window_equals_encoding_the_mask_drawn_whole(
    case: tuple[Mask, tuple[int, int], tuple[int, int]],
) -> None:
    window, offset_xy, size_hw = case
    rle = encode_window(window, offset_xy=offset_xy, size_hw=size_hw)
    assert rle == encode_rle(drawn_whole(window, offset_xy, size_hw))


@given(arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 9))), st.integers(0, 3))
def test_runs_of_a_window_as_high_as_its_frame_go_on_in_the_next_column(
    window: Mask, before: int
) -> None:
    size_hw = (window.shape[0], window.shape[1] + before + 2)
    rle = encode_window(window, offset_xy=(before, 0), size_hw=size_hw)
    assert rle == encode_rle(drawn_whole(window, (before, 0), size_hw))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_a_window_without_pixels_is_an_empty_mask(shape: tuple[int, int]) -> None:
    rle = encode_window(np.zeros(shape, dtype=bool), offset_xy=(2, 1), size_hw=(6, 9))
    assert rle == encode_rle(np.zeros((6, 9), dtype=bool))


@pytest.mark.parametrize(
    ("size_hw", "offset_xy"), [((20_000, 200), (150, 19_000)), ((200, 20_000), (19_000, 50))]
)
def test_a_window_far_out_in_a_very_long_frame_is_encoded_right(
    size_hw: tuple[int, int], offset_xy: tuple[int, int]
) -> None:
    window = np.random.default_rng(2).random((30, 40)) < 0.5
    rle = encode_window(window, offset_xy=offset_xy, size_hw=size_hw)
    assert rle == encode_rle(drawn_whole(window, offset_xy, size_hw))


@given(masks)
def test_box_and_area_are_those_of_the_pixels(mask: Mask) -> None:
    rle = encode_rle(mask)
    assert rle_area(rle) == mask.sum()
    if mask.any():
        rows, columns = np.nonzero(mask)
        x, y = columns.min(), rows.min()
        assert rle_bbox(rle) == (x, y, columns.max() - x + 1, rows.max() - y + 1)
    else:
        assert rle_bbox(rle)[2:] == (0, 0)


@given(masks)
def test_runs_cover_the_mask_column_by_column(mask: Mask) -> None:
    flat = np.zeros(mask.size, dtype=bool)
    for start, end in rle_runs(encode_rle(mask)):
        assert start < end
        flat[start:end] = True
    assert np.array_equal(flat.reshape(mask.shape, order="F"), mask)


def test_runs_of_masks_with_long_counts_are_read_right() -> None:
    mask = np.zeros((3000, 900), dtype=bool)
    mask[:, 200:210] = True
    mask[5:2990, 700] = True
    runs = rle_runs(encode_rle(mask))
    assert runs.tolist() == [[600_000, 630_000], [2_100_005, 2_102_990]]


def test_iou_of_every_pair_is_that_of_the_pixels() -> None:
    rng = np.random.default_rng(3)
    first, second = (list(rng.random((n, 12, 9)) < 0.4) for n in (3, 2))
    ious = rle_iou([encode_rle(m) for m in first], [encode_rle(m) for m in second])
    expected = [[(a & b).sum() / (a | b).sum() for b in second] for a in first]
    assert np.allclose(ious, expected)


def test_iou_with_nothing_on_one_side_has_no_pairs() -> None:
    rle = encode_rle(EXTREMES["full"])
    assert rle_iou([], [rle]).shape == (0, 1)
    assert rle_iou([rle], []).shape == (1, 0)


def test_polygons_are_united() -> None:
    square = [[2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0], [4.0, 4.0, 9.0, 4.0, 9.0, 9.0, 4.0, 9.0]]
    mask = decode_rle(rle_from_polygons(square, 12, 12))
    assert mask.sum() == 16 + 25 - 4
    assert mask[3, 3]
    assert mask[8, 8]
    assert not mask[8, 3]


@pytest.mark.parametrize("counts", [[3, 4], [20, 5], [-1, 13], []])
def test_counts_that_do_not_fill_the_frame_are_refused_with_both_numbers(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=f"sum to {sum(counts)}, expected 4 x 3 = 12"):
        rle_from_uncompressed(counts, 4, 3)


def test_more_than_255_masks_are_compared_without_overflow() -> None:
    full = Rle(size=(600, 500), counts=encode_rle(np.ones((600, 500), dtype=bool)).counts)
    assert (rle_iou([full] * 300, [full]) == 1).all()
