"""Statistics as tables for a terminal or a log: a run in full, and rounds side by side."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from engine.stats import SIZE_STRATA, Histogram, Stats

Lines = list[tuple[str, str]]

ROUND_COLUMNS = (
    "images",
    "masks",
    "masks/image",
    "clicks/mask",
    "seconds/mask",
    "bytes/mask",
    "worker s/image",
)


def stats_table(stats: Stats, *, title: str | None = None) -> Table:
    """Everything that was counted, a line each."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for section in (
        _counts("images", stats.images.items()),
        _counts("masks", stats.masks.items()),
        _means(stats),
        _medians(stats),
        _counts("drops", stats.drops.items()),
    ):
        for name, value in section:
            table.add_row(name, value)
        table.add_section()
    return table


def rounds_table(rounds: Sequence[tuple[str, Stats]], *, title: str | None = None) -> Table:
    """One line a round, and their total when there are several."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("round", no_wrap=True)
    for heading in ROUND_COLUMNS:
        table.add_column(heading, justify="right")
    for label, stats in rounds:
        table.add_row(label, *_round_cells(stats))
    if len(rounds) > 1:
        table.add_section()
        table.add_row("total", *_round_cells(Stats.total(stats for _, stats in rounds)))
    return table


def _round_cells(stats: Stats) -> tuple[str, ...]:
    """In the order of ROUND_COLUMNS."""
    return (
        f"{stats.num_images:,}",
        f"{stats.num_masks:,}",
        f"{stats.mean_masks_per_image:.1f}",
        f"{stats.clicks_per_mask:.1f}",
        f"{stats.seconds_per_mask:.1f}",
        f"{stats.bytes_per_mask:.0f}",
        f"{stats.worker_seconds_per_image:.2f}",
    )


def _counts(name: str, parts: Iterable[tuple[str, int]]) -> Lines:
    """The total, then its parts, largest first."""
    ordered = sorted(parts, key=lambda part: -part[1])
    total = sum(count for _, count in ordered)
    return [(name, f"{total:,}"), *((f"  {key}", f"{count:,}") for key, count in ordered)]


def _means(stats: Stats) -> Lines:
    return [
        ("masks per image", f"{stats.mean_masks_per_image:.1f}"),
        ("clicks per annotated mask", f"{stats.clicks_per_mask:.2f}"),
        ("annotator seconds per annotated mask", f"{stats.seconds_per_mask:.2f}"),
        ("annotator time", _duration(stats.annotator_seconds)),
        ("RLE bytes per mask", f"{stats.bytes_per_mask:.0f}"),
        ("image pixels", f"{stats.image_pixels / 1e6:,.1f} M"),
        ("worker time", _duration(stats.worker_seconds)),
        ("worker seconds per image", f"{stats.worker_seconds_per_image:.3g}"),
    ]


def _medians(stats: Stats) -> Lines:
    low, high = SIZE_STRATA
    strata = (f"below {low}", f"{low} to {high}", f"from {high}")
    return [
        ("median relative size", _median(stats.relative_size)),
        *(
            (f"median concavity, relative size {stratum}", _median(histogram))
            for stratum, histogram in zip(strata, stats.concavity, strict=True)
        ),
        ("median predicted IoU", _median(stats.predicted_iou)),
        ("median stability score", _median(stats.stability_score)),
    ]


def _median(histogram: Histogram) -> str:
    """The bin it lies in."""
    seen = 0
    for i, count in enumerate(histogram.counts):
        seen += count
        if count and 2 * seen >= histogram.total:
            return f"{histogram.edges[i]:g} to {histogram.edges[i + 1]:g}"
    return "-"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
