import io
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from scipy.spatial import ConvexHull

from engine.concavity import concavities, hull_area
from engine.report import rounds_table, stats_table
from engine.stats import CENTRE_BINS, SECONDS_EDGES, Histogram, Stats
from stages.records import ImageRecord, ImageStatus, MaskRecord, Rle, Source, StageName
from stages.rle import Mask, encode_rle, rle_area, rle_bbox, rle_runs

relaxed = settings(deadline=None, max_examples=50)  # a busy machine is no failure
masks_drawn = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=24))


def mask_record(
    mask: Mask,
    *,
    source: Source = Source.AUTOMATIC,
    seconds: float = 0.0,
    num_clicks: int = 0,
    predicted_iou: float = 0.9,
) -> MaskRecord:
    rle = encode_rle(mask)
    height, width = mask.shape
    return MaskRecord(
        id=0,
        segmentation=rle,
        bbox=rle_bbox(rle),
        area=rle_area(rle),
        predicted_iou=predicted_iou,
        stability_score=0.97,
        crop_box=(0.0, 0.0, float(width), float(height)),
        point_coords=(),
        stage=StageName.FULLY_AUTOMATIC,
        round=0,
        source=source,
        annotator="",
        seconds=seconds,
        num_clicks=num_clicks,
        checkpoint="tiny",
    )


def image_record(
    *masks: MaskRecord,
    size_hw: tuple[int, int] = (10, 20),
    status: ImageStatus = ImageStatus.OK,
    drops: dict[str, int] | None = None,
    worker_seconds: float = 0.0,
) -> ImageRecord:
    return ImageRecord(
        image_id=0,
        file_name="a.jpg",
        uri="a.jpg",
        width=size_hw[1],
        height=size_hw[0],
        sha256="",
        stage=StageName.FULLY_AUTOMATIC,
        round=0,
        status=status,
        error="",
        masks=masks,
        drops=drops or {},
        annotator_seconds=sum(mask.seconds for mask in masks if mask.source is Source.ANNOTATED),
        worker_seconds=worker_seconds,
    )


def rectangle(size_hw: tuple[int, int], y: slice, x: slice) -> Mask:
    mask = np.zeros(size_hw, dtype=bool)
    mask[y, x] = True
    return mask


@st.composite
def stats_drawn(draw: st.DrawFn) -> Stats:
    """Of one image with a few blocks; seconds are eighths, so float sums are exact here."""
    size_hw = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    masks = [
        mask_record(
            draw(arrays(np.bool_, size_hw)),
            source=draw(st.sampled_from(Source)),
            seconds=draw(st.integers(0, 800)) / 8,
            num_clicks=draw(st.integers(0, 9)),
            predicted_iou=draw(st.floats(-0.5, 1.5)),
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    status = ImageStatus.OK if masks else draw(st.sampled_from(ImageStatus))
    drops = draw(st.dictionaries(st.sampled_from(["duplicate", "empty"]), st.integers(0, 5)))
    worker_seconds = draw(st.integers(0, 80)) / 8
    return Stats.of(
        image_record(
            *masks, size_hw=size_hw, status=status, drops=drops, worker_seconds=worker_seconds
        )
    )


@relaxed
@given(masks_drawn)
def test_runs_of_an_rle_draw_the_mask_again(mask: Mask) -> None:
    drawn = np.zeros(mask.size, dtype=bool)
    for start, end in rle_runs(encode_rle(mask)):
        drawn[start:end] = True
    assert np.array_equal(drawn.reshape(mask.shape[::-1]).T, mask)


def test_runs_longer_than_one_character_of_the_rle_are_read_whole() -> None:
    mask = rectangle((1500, 2250), slice(0, 1500), slice(700, 1900))
    mask[40:60, 3] = True
    assert rle_runs(encode_rle(mask)).tolist() == [[4540, 4560], [700 * 1500, 1900 * 1500]]


def test_runs_without_pixels_are_left_out() -> None:
    assert rle_runs(Rle(size=(2, 3), counts="00500")).tolist() == []


@relaxed
@given(masks_drawn)
def test_hull_area_equals_that_of_all_pixel_corners(mask: Mask) -> None:
    ys, xs = np.nonzero(mask)
    corners = [
        (x + dx, y + dy) for x, y in zip(xs, ys, strict=True) for dx in (0, 1) for dy in (0, 1)
    ]
    expected = ConvexHull(corners).volume if corners else 0.0
    assert hull_area(encode_rle(mask)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (7, 1), (5, 8)])
def test_a_full_frame_is_convex(size_hw: tuple[int, int]) -> None:
    rle = encode_rle(np.ones(size_hw, dtype=bool))
    assert (hull_area(rle), concavities([rle])) == (size_hw[0] * size_hw[1], [0.0])


@relaxed
@given(st.lists(masks_drawn, max_size=5))
def test_masks_do_not_touch_each_others_hulls(masks: list[Mask]) -> None:
    rles = [encode_rle(mask) for mask in masks] * 20
    assert concavities(rles) == [value for rle in rles for value in concavities([rle])]


def test_an_empty_mask_has_no_hull_and_no_concavity() -> None:
    rle = encode_rle(np.zeros((4, 4), dtype=bool))
    assert (hull_area(rle), concavities([rle])) == (0.0, [0.0])


def test_two_pixels_at_opposite_corners_span_a_slanted_hull() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = mask[3, 3] = True
    assert hull_area(encode_rle(mask)) == 7.0  # 16 less two triangles of legs 3
    assert concavities([encode_rle(mask)]) == pytest.approx([5 / 7])


@relaxed
@given(st.lists(stats_drawn(), max_size=4), st.randoms())
def test_stats_merge_in_any_order_and_grouping(parts: list[Stats], random: Random) -> None:
    whole = Stats.total(parts)
    shuffled = random.sample(parts, len(parts))
    half = len(parts) // 2
    assert Stats.total(shuffled) == whole
    assert Stats.total(parts[:half]) + Stats.total(parts[half:]) == whole
    assert Stats.total(shuffled).model_dump_json() == whole.model_dump_json()


@relaxed
@given(stats_drawn())
def test_stats_survive_json_and_adding_zero(stats: Stats) -> None:
    assert Stats.model_validate_json(stats.model_dump_json()) == stats
    assert Stats() + stats == stats + Stats() == stats


@relaxed
@given(stats_drawn())
def test_every_mask_is_counted_once_in_every_distribution(stats: Stats) -> None:
    assert stats.num_masks == stats.relative_size.total == sum(h.total for h in stats.concavity)
    assert stats.num_masks == stats.predicted_iou.total == stats.stability_score.total
    assert stats.num_masks == sum(map(sum, stats.centres))
    assert stats.masks.get(Source.ANNOTATED, 0) == stats.seconds_per_annotated_mask.total


def test_zero_stats_have_zero_means() -> None:
    zero = Stats()
    assert zero.num_images == zero.num_masks == 0
    assert zero.mean_masks_per_image == zero.seconds_per_mask == zero.clicks_per_mask == 0.0
    assert zero.bytes_per_mask == zero.worker_seconds_per_image == 0.0


def test_an_image_without_masks_counts_as_an_image() -> None:
    stats = Stats.of(image_record(size_hw=(30, 40), drops={"duplicate": 3, "empty": 0}))
    assert stats.images == {ImageStatus.OK: 1}
    assert stats.masks_per_image.counts[0] == 1
    assert stats.image_pixels == 1200
    assert stats.drops == {"duplicate": 3}
    assert stats.mean_masks_per_image == 0.0


def test_an_unreadable_image_is_a_row_but_no_image_without_masks() -> None:
    bad = Stats.of(image_record(size_hw=(0, 0), status=ImageStatus.UNREADABLE, worker_seconds=0.5))
    assert bad.num_images == 1
    assert bad.masks_per_image.total == 0
    assert bad.worker_seconds == 0.5
    good = Stats.of(image_record(mask_record(np.ones((10, 20), dtype=bool))))
    assert (bad + good).mean_masks_per_image == 1.0


def test_masks_of_an_image_that_was_skipped_are_no_masks_of_the_others() -> None:
    mask = np.ones((10, 20), dtype=bool)
    skipped = image_record(mask_record(mask), mask_record(mask), status=ImageStatus.SKIPPED)
    stats = Stats.of(skipped) + Stats.of(image_record(mask_record(mask)))
    assert (stats.num_masks, stats.mean_masks_per_image) == (3, 1.0)


def test_a_one_pixel_image_with_its_mask_is_one_large_convex_mask() -> None:
    stats = Stats.of(image_record(mask_record(np.ones((1, 1), dtype=bool)), size_hw=(1, 1)))
    assert stats.relative_size.counts[-1] == 1
    assert stats.concavity[2].counts[0] == 1
    assert stats.centres[CENTRE_BINS // 2][CENTRE_BINS // 2] == 1


def test_masks_fall_into_bins_by_size_shape_and_place() -> None:
    frame = (100, 200)
    small = mask_record(rectangle(frame, slice(0, 5), slice(0, 5)))
    corner = rectangle(frame, slice(0, 100), slice(100, 200))
    corner[:50, :150] = False  # an L: three quarters of a square, seven eighths of it in the hull
    stats = Stats.of(image_record(small, mask_record(corner), size_hw=frame))
    assert [i for i, n in enumerate(stats.relative_size.counts) if n] == [1, 30]  # 0.035 and 0.61
    assert stats.concavity[0].counts[0] == 1
    assert stats.concavity[2].counts[2] == 1  # 1 - 7500 / 8750 = 0.14
    assert stats.centres[0][0] == 1
    assert stats.centres[CENTRE_BINS // 2][CENTRE_BINS * 3 // 4] == 1


def test_only_annotated_masks_cost_clicks_and_seconds() -> None:
    mask = np.ones((10, 20), dtype=bool)
    stats = Stats.of(
        image_record(
            mask_record(mask, source=Source.ANNOTATED, seconds=7.0, num_clicks=3),
            mask_record(mask, source=Source.ANNOTATED, seconds=90.0, num_clicks=4),
            mask_record(mask, source=Source.PREFILLED, seconds=50.0, num_clicks=9),
        )
    )
    assert (stats.annotator_seconds, stats.clicks) == (97.0, 7)
    assert (stats.seconds_per_mask, stats.clicks_per_mask) == (48.5, 3.5)
    assert stats.mean_masks_per_image == 3.0
    assert stats.seconds_per_annotated_mask.counts[3] == 1  # 6 to 8 s
    assert stats.seconds_per_annotated_mask.counts[-1] == 1


def test_a_histogram_counts_edges_upwards_and_outsiders_at_its_ends() -> None:
    histogram = Histogram.of([-1.0, 0.0, 0.29, 0.5, 1.0, 7.0], (0.0, 0.29, 0.5, 1.0))
    assert histogram.counts == (2, 1, 3)
    assert histogram.total == 6


def test_histograms_of_different_bins_do_not_add() -> None:
    with pytest.raises(ValueError, match=r"different bins: 3 edges up to 2\.0, and 31 up to 60\.0"):
        Histogram.of([], (0.0, 1.0, 2.0)) + Histogram.of([], SECONDS_EDGES)
    with pytest.raises(ValidationError, match="2 counts for 2 edges"):
        Histogram(edges=(0.0, 1.0), counts=(1, 2))


def printed(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue()


def test_the_table_of_a_run_shows_every_count() -> None:
    stats = Stats.of(
        image_record(mask_record(np.ones((10, 20), dtype=bool)), drops={"low_stability": 1234})
    )
    lines = [line.split() for line in printed(stats_table(stats, title="round 1")).splitlines()]
    assert ["low_stability", "1,234"] in lines
    assert ["automatic", "1"] in lines
    assert "nan" not in printed(stats_table(Stats()))


def test_the_table_of_rounds_ends_with_their_total() -> None:
    mask = mask_record(np.ones((10, 20), dtype=bool), source=Source.ANNOTATED, seconds=12.0)
    first, second = Stats.of(image_record(mask, mask)), Stats.of(image_record())
    lines = [
        line.split() for line in printed(rounds_table([("1", first), ("2", second)])).splitlines()
    ]
    assert [line[:4] for line in lines if line][-3:] == [
        ["1", "1", "2", "2.0"],
        ["2", "1", "0", "0.0"],
        ["total", "2", "2", "1.0"],
    ]
    assert "total" not in printed(rounds_table([("1", first)]))
