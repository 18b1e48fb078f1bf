import io
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from engine.figures import figure_bytes, stats_figure
from engine.stats import Histogram, Stats
from stages.records import ImageStatus, Source

PANELS = [
    "Masks per image",
    "Relative size",
    "Concavity by relative size",
    "Mask centres",
    "Predicted IoU",
    "Stability",
    "Refused candidates",
    "Annotator effort",
]


def spread(zero: Histogram, total: int, rng: np.random.Generator) -> Histogram:
    shares = np.linspace(2, 1, len(zero.counts))
    counts = rng.multinomial(total, shares / shares.sum())
    return Histogram(edges=zero.edges, counts=tuple(counts.tolist()))


def some_stats(masks: int, seconds: float) -> Stats:
    rng, zero = np.random.default_rng(0), Stats()
    centres = rng.multinomial(masks, np.full(len(zero.centres) ** 2, len(zero.centres) ** -2))
    small, medium, large = (spread(histogram, masks, rng) for histogram in zero.concavity)
    return Stats(
        images={ImageStatus.OK: masks // 40},
        masks={Source.ANNOTATED: masks},
        drops={"low_predicted_iou": 9 * masks, "duplicate": masks, "low_stability": 3},
        masks_per_image=spread(zero.masks_per_image, masks // 40, rng),
        relative_size=spread(zero.relative_size, masks, rng),
        concavity=(small, medium, large),
        centres=tuple(map(tuple, centres.reshape(len(zero.centres), -1).tolist())),
        predicted_iou=spread(zero.predicted_iou, masks, rng),
        stability_score=spread(zero.stability_score, masks, rng),
        seconds_per_annotated_mask=spread(zero.seconds_per_annotated_mask, masks, rng),
        annotator_seconds=masks * seconds,
        clicks=3 * masks,
    )


@pytest.fixture(scope="module")
def figure() -> Figure:
    rounds = [(f"{i} assisted manual", some_stats(400, 34 - 5 * i)) for i in range(5)]
    drawn = stats_figure(rounds, title="Demo")
    drawn.draw_without_rendering()
    return drawn


def test_every_panel_has_its_title_and_named_axes(figure: Figure) -> None:
    panels = figure.axes[: len(PANELS)]
    titles = [panel.get_title(loc="left") for panel in panels]
    assert [title.split(",")[0] for title in titles] == PANELS
    assert all(panel.get_xlabel() for panel in panels)
    assert "2,000 masks" in figure.get_suptitle()


def test_no_two_texts_overlap_and_none_leaves_the_figure(figure: Figure) -> None:
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    renderer = figure.canvas.get_renderer()
    shown = [text for text in texts if text.get_rotation() in (0.0, 90.0)]
    boxes = [text.get_window_extent(renderer).shrunk(0.9, 0.7) for text in shown]
    assert len(boxes) > 60
    assert all(figure.bbox.padded(1).containsx(box.x0 + box.width) for box in boxes)
    overlaps = [
        (a.get_text(), b.get_text())
        for (a, box_a), (b, box_b) in combinations(zip(shown, boxes, strict=True), 2)
        if box_a.overlaps(box_b)
    ]
    assert overlaps == []


def test_the_same_statistics_give_the_same_bytes() -> None:
    rounds = [("1", some_stats(40, 12.0))]
    first, second = (figure_bytes(stats_figure(rounds)) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).size == (1800, 912)


def test_a_run_without_masks_has_a_figure_that_says_so() -> None:
    figure = stats_figure([("1", Stats())])
    notes = {text.get_text() for panel in figure.axes for text in panel.texts}
    assert notes == {"no image", "no mask", "no candidate was refused", "no mask was annotated"}
    assert figure_bytes(figure, "pdf").startswith(b"%PDF")
