import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fakes import rectangle
from stages.batch import MaskBatch
from stages.filters import (
    DropReason,
    Drops,
    FilterConfig,
    box_nms,
    clean_small_regions,
    drop_duplicates,
    drop_whole_image,
    mask_box,
    touches_crop_edge,
)
from stages.rle import Mask, decode_rle, encode_rle

SIZE_HW = (60, 80)


def batch_of(*masks: Mask, scores: list[float] | None = None) -> MaskBatch:
    count = len(masks)
    return MaskBatch(
        rles=tuple(encode_rle(mask) for mask in masks),
        boxes_xyxy=np.asarray([mask_box(mask) for mask in masks], np.float32).reshape(count, 4),
        predicted_iou=np.asarray(scores or [0.9] * count, np.float32),
        stability_score=np.linspace(0.95, 1, count, dtype=np.float32),
        prompts=np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        crop_boxes_xyxy=np.tile(np.float32([0, 0, SIZE_HW[1], SIZE_HW[0]]), (count, 1)),
    )


def brute_force_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], threshold: float
) -> list[int]:
    """One box after the other, best first: kept unless a kept one overlaps it too much."""

    def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        overlap = max(width, 0) * max(height, 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
        return float(overlap / union) if union else float((a == b).all())

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


small = st.integers(0, 8)
boxes_with_scores = st.lists(st.tuples(small, small, small, small, st.integers(0, 3)), max_size=12)


@given(boxes_with_scores, st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_keeps_what_going_through_the_boxes_one_by_one_keeps(
    drawn: list[tuple[int, int, int, int, int]], threshold: float
) -> None:
    boxes = np.asarray([(x, y, x + w, y + h) for x, y, w, h, _ in drawn], np.float32).reshape(-1, 4)
    scores = np.asarray([score for *_, score in drawn], np.float32)
    assert box_nms(boxes, scores, threshold).tolist() == brute_force_nms(boxes, scores, threshold)


def test_of_equal_thin_masks_one_stays_and_other_thin_masks_are_left_alone() -> None:
    boxes = np.float32([[3, 0, 3, 9], [3, 0, 3, 9], [4, 0, 4, 9], [5, 5, 5, 5]])
    assert box_nms(boxes, np.float32([1, 2, 3, 4]), 0.7).tolist() == [3, 2, 1]


def test_duplicates_are_counted_and_the_most_confident_stays() -> None:
    first, again = rectangle(SIZE_HW, 10, 10, 30, 30), rectangle(SIZE_HW, 10, 10, 31, 30)
    other = rectangle(SIZE_HW, 35, 50, 55, 70)
    batch, drops = batch_of(first, again, other, scores=[0.9, 0.95, 0.92]), Drops()
    kept = drop_duplicates(batch, batch.predicted_iou, 0.7, drops)
    assert kept.rles == (batch.rles[1], batch.rles[2])
    assert kept.prompts.tolist() == batch.prompts[[1, 2]].tolist()
    assert drops.as_dict() == {"duplicate": 1}


@pytest.mark.parametrize(
    ("box", "touches"),
    [
        ((300, 300, 400, 400), False),  # well inside
        ((115, 300, 400, 400), True),  # near the crop's left edge
        ((121, 300, 400, 400), False),  # one pixel beyond the tolerance
        ((300, 5, 400, 400), False),  # at the top edge, which is the image's own
        ((300, 300, 400, 590), True),  # near the bottom edge
        ((100, 0, 600, 600), True),  # fills the crop
    ],
)
def test_a_mask_at_an_inner_edge_of_its_crop_is_seen(
    box: tuple[int, int, int, int], touches: bool
) -> None:
    crop_box, image_size_hw = (100, 0, 600, 600), (1000, 1000)
    boxes = np.asarray([box], dtype=np.float32)
    assert touches_crop_edge(boxes, crop_box, image_size_hw, 20).tolist() == [touches]


def test_no_edge_of_the_whole_image_is_an_inner_edge() -> None:
    boxes = np.float32([[0, 0, 79, 59], [0, 10, 5, 20]])
    assert not touches_crop_edge(boxes, (0, 0, 80, 60), (60, 80), 20).any()


def test_cleaning_updates_boxes_and_counts_what_it_drops() -> None:
    whole = rectangle(SIZE_HW, 10, 10, 40, 40)
    specked = rectangle(SIZE_HW, 10, 45, 40, 65) | rectangle(SIZE_HW, 55, 0, 57, 2)
    tiny = rectangle(SIZE_HW, 50, 70, 55, 75)
    drops = Drops()
    cleaned = clean_small_regions(batch_of(whole, specked, tiny), FilterConfig(), drops)
    assert [decode_rle(rle).sum() for rle in cleaned.rles] == [900, 600]
    assert cleaned.boxes_xyxy.tolist() == [[10, 10, 39, 39], [45, 10, 64, 39]]
    assert drops.as_dict() == {"small_region": 1}


def test_of_masks_that_cleaning_made_equal_the_unchanged_one_stays() -> None:
    whole = rectangle(SIZE_HW, 10, 10, 40, 40)
    specked = whole | rectangle(SIZE_HW, 58, 78, 60, 80)
    batch, drops = batch_of(specked, whole, scores=[0.99, 0.9]), Drops()
    cleaned = clean_small_regions(batch, FilterConfig(), drops)
    assert cleaned.predicted_iou.tolist() == [np.float32(0.9)]
    assert drops.as_dict() == {"duplicate": 1}


def test_cleaning_drops_no_pair_that_the_laxer_nms_let_pass() -> None:
    pair = batch_of(rectangle(SIZE_HW, 0, 0, 20, 20), rectangle(SIZE_HW, 0, 0, 20, 33))
    config = FilterConfig(box_nms_thresh=0.5, crop_nms_thresh=0.7)
    assert len(clean_small_regions(pair, config, Drops())) == 2
    strict = FilterConfig(box_nms_thresh=0.5, crop_nms_thresh=0.5)
    assert len(clean_small_regions(pair, strict, Drops())) == 1


def test_cleaning_is_switched_off_by_an_area_of_zero() -> None:
    batch, drops = batch_of(rectangle(SIZE_HW, 1, 1, 2, 2)), Drops()
    assert clean_small_regions(batch, FilterConfig(min_mask_region_area=0), drops) is batch
    assert drops.as_dict() == {}


def test_a_mask_of_almost_the_whole_image_is_dropped() -> None:
    almost = rectangle(SIZE_HW, 0, 0, 57, 80)  # 95 % to the pixel
    less = rectangle(SIZE_HW, 0, 0, 56, 80)
    drops = Drops()
    kept = drop_whole_image(batch_of(almost, less), SIZE_HW, 0.95, drops)
    assert [decode_rle(rle).sum() for rle in kept.rles] == [less.sum()]
    assert drops == {DropReason.WHOLE_IMAGE: 1}
    assert len(drop_whole_image(batch_of(almost, less), SIZE_HW, None, drops)) == 2


def test_filters_take_a_batch_of_nothing() -> None:
    nothing, drops = MaskBatch.empty(), Drops()
    assert len(clean_small_regions(nothing, FilterConfig(), drops)) == 0
    assert len(drop_whole_image(nothing, SIZE_HW, 0.95, drops)) == 0
    assert len(drop_duplicates(nothing, nothing.predicted_iou, 0.7, drops)) == 0
    assert drops.as_dict() == {}


def test_the_box_of_a_mask_ends_on_its_outermost_pixels() -> None:
    assert mask_box(rectangle(SIZE_HW, 3, 5, 10, 20)) == (5, 3, 19, 9)


def test_selecting_and_concatenating_keep_columns_aligned() -> None:
    batch = batch_of(*(rectangle(SIZE_HW, i, i, i + 5, i + 5) for i in range(4)))
    again = MaskBatch.concat([batch.select(np.asarray([2])), MaskBatch.empty(), batch])
    picked = again.select(np.asarray([True, False, False, False, True]))
    assert picked.rles == (batch.rles[2], batch.rles[3])
    assert picked.boxes_xyxy[:, 0].tolist() == [2, 3]
    assert picked.prompts.tolist() == batch.prompts[[2, 3]].tolist()
