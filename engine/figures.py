"""The statistics of a run as one figure, panel by panel what SA-1B was described with [§5]."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from engine.stats import SIZE_STRATA, Histogram, Stats
from stages.records import Source

INK, MUTED, GRID = "#1f2933", "#66727f", "#e3e7eb"
BLUE, ORANGE = "#2f6db3", "#d9822b"
STRATA_COLOURS = ("#8fbbe8", "#3f7fc1", "#173f6f")
ROUND_STEPS = (1, 2, 5, 10)
MAX_DROP_REASONS = 8
MAX_ROUND_LABELS = 8


def stats_figure(rounds: Sequence[tuple[str, Stats]], *, title: str | None = None) -> Figure:
    """Distributions over all rounds together; annotator effort round by round.

    Made without pyplot: nothing global changes, and no display is needed.
    """
    stats = Stats.total(part for _, part in rounds)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14)
    figure = Figure(figsize=(15, 7.6), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 4).ravel()
    _masks_per_image(panels[0], stats)
    _relative_size(panels[1], stats)
    _concavity(panels[2], stats)
    _centres(panels[3], stats)
    _score(panels[4], stats.predicted_iou, "Predicted IoU", "predicted IoU")
    _score(panels[5], stats.stability_score, "Stability", "stability score")
    _drops(panels[6], stats)
    _effort(panels[7], rounds)
    summary = f"{stats.num_masks:,} masks on {stats.num_images:,} images"
    figure.suptitle(f"{title}: {summary}" if title else summary, color=INK, fontsize=14)
    return figure


def figure_bytes(figure: Figure, kind: Literal["png", "pdf"] = "png") -> bytes:
    """A file's content, the same for the same figure: no date is written."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
    return buffer.getvalue()


def _masks_per_image(axes: Axes, stats: Stats) -> None:
    histogram = stats.masks_per_image
    _style(axes, f"Masks per image, mean {stats.mean_masks_per_image:.1f}", "masks", "images")
    if not histogram.total:
        return _nothing(axes, "no image")
    labels = [
        f"{low:g}" if high == low + 1 else f"{low:g}-{high - 1:g}"
        for low, high in zip(histogram.edges[:-1], histogram.edges[1:], strict=True)
    ]
    labels[-1] = f"{histogram.edges[-2]:g}+"
    axes.bar(range(len(labels)), _shares(histogram), color=BLUE, width=0.8)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(visible=False, axis="x")
    _percent_scale(axes, _shares(histogram).max())


def _relative_size(axes: Axes, stats: Stats) -> None:
    _style(axes, "Relative size", r"$\sqrt{\mathrm{mask\ area\,/\,image\ area}}$", "masks")
    if not stats.num_masks:
        return _nothing(axes, "no mask")
    _filled(axes, stats.relative_size)
    axes.set_xlim(0, 1)


def _concavity(axes: Axes, stats: Stats) -> None:
    _style(axes, "Concavity by relative size", "1 - mask area / hull area", "masks of that size")
    if not stats.num_masks:
        return _nothing(axes, "no mask")
    low, high = SIZE_STRATA
    names = (f"small, below {low}", f"medium, {low} to {high}", f"large, from {high}")
    for histogram, name, colour in zip(stats.concavity, names, STRATA_COLOURS, strict=True):
        label = f"{name} ({histogram.total:,})"
        if histogram.total:
            axes.stairs(_shares(histogram), histogram.edges, color=colour, lw=1.8, label=label)
    axes.set_xlim(0, 1)
    peak = max(_shares(histogram).max() for histogram in stats.concavity)
    _percent_scale(axes, peak * 1.3)  # the legend stands above the lines
    axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=INK)


def _centres(axes: Axes, stats: Stats) -> None:
    _style(axes, "Mask centres", "x / image width", "y / image height")
    if not stats.num_masks:
        return _nothing(axes, "no mask")
    counts = np.asarray(stats.centres)
    # Masks that span the image share one centre; it must not darken all the others.
    most = max(float(np.quantile(counts, 0.99)), 1.0)
    shown = axes.imshow(counts, cmap="magma", extent=(0, 1, 1, 0), vmin=0, vmax=most)
    axes.grid(visible=False)
    axes.set_xticks((0, 0.5, 1))
    axes.set_yticks((0, 0.5, 1))
    extend = "max" if counts.max() > most else "neither"
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03, extend=extend)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bar.set_label("masks", color=INK, fontsize=10)
    bar.ax.tick_params(labelsize=9, colors=MUTED, length=0)
    bar.outline.set_visible(False)


def _score(axes: Axes, histogram: Histogram, title: str, name: str) -> None:
    """From the lowest score that occurs: thresholds leave the rest of the axis empty."""
    _style(axes, title, name, "masks")
    if not histogram.total:
        return _nothing(axes, "no mask")
    _filled(axes, histogram)
    lowest = histogram.edges[int(np.flatnonzero(histogram.counts)[0])]
    axes.set_xlim(max(0.0, min(lowest - 0.01, 0.89)), 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))


def _drops(axes: Axes, stats: Stats) -> None:
    """As shares of what the model proposed: refused, prefilled and automatic masks."""
    _style(axes, "Refused candidates", "share of all candidates", "")
    if not stats.drops:
        return _nothing(axes, "no candidate was refused")
    largest = sorted(stats.drops.items(), key=lambda item: item[1])[-MAX_DROP_REASONS:]
    names = [reason.replace("_", " ").replace("iou", "IoU") for reason, _ in largest]
    accepted = stats.num_masks - stats.masks.get(Source.ANNOTATED, 0)
    shares = [count / (sum(stats.drops.values()) + accepted) for _, count in largest]
    bars = axes.barh(names, shares, color=ORANGE, height=0.7)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=9, color=INK)
    axes.set_xlim(0, max(shares) * 1.25)  # room for the numbers
    _percents(axes.xaxis)
    axes.grid(visible=False, axis="y")


def _effort(axes: Axes, rounds: Sequence[tuple[str, Stats]]) -> None:
    """Two scales, told apart by colour: on the axes as on the lines."""
    _style(axes, "Annotator effort", "round", "seconds per annotated mask")
    annotated = [(label, part) for label, part in rounds if part.seconds_per_annotated_mask.total]
    if not annotated:
        return _nothing(axes, "no mask was annotated")
    seconds = [part.seconds_per_mask for _, part in annotated]
    clicks = [part.clicks_per_mask for _, part in annotated]
    axes.plot(seconds, "o-", color=BLUE)
    axes.set_ylim(0, max(*seconds, 1.0) * 1.1)
    axes.yaxis.label.set_color(BLUE)
    right = axes.twinx()
    right.plot(clicks, "s--", color=ORANGE)
    right.set_ylim(
        0, max(*clicks, 1.0) * 1.35
    )  # apart from the other line, were both to fall alike
    right.set_ylabel("clicks per annotated mask", color=ORANGE, fontsize=10)
    right.tick_params(labelsize=9, colors=MUTED, length=0)
    right.spines[:].set_visible(False)
    every = -(-len(annotated) // MAX_ROUND_LABELS)
    labels = [label for label, _ in annotated][::every]
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    long = max(map(len, labels)) > 3
    axes.set_xticks(range(0, len(annotated), every), labels, **(slant if long else {}))
    axes.margins(x=0.15)


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=MUTED, length=0, pad=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _filled(axes: Axes, histogram: Histogram) -> None:
    shares = _shares(histogram)
    axes.stairs(shares, histogram.edges, fill=True, color=BLUE, alpha=0.25)
    axes.stairs(shares, histogram.edges, color=BLUE, lw=1.8)
    _percent_scale(axes, shares.max())


def _percent_scale(axes: Axes, highest: float) -> None:
    axes.set_ylim(0, highest * 1.05)
    _percents(axes.yaxis)


def _percents(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))


def _shares(histogram: Histogram) -> NDArray[np.float64]:
    """Of the total, bin by bin; zeros of an empty histogram."""
    return np.asarray(histogram.counts, dtype=np.float64) / max(histogram.total, 1)


def _nothing(axes: Axes, text: str) -> None:
    axes.set(xticks=(), yticks=(), xlabel="", ylabel="")
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
