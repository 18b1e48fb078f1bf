"""What a set of image records amounts to, as numbers that add up.

`Stats.of(record)` counts one image; shards, rounds and runs are sums. Every count and histogram is
a whole number, so sums are equal in any order and grouping; the two sums of seconds are floats and
may differ in their last bits.

The distributions are those SA-1B was described with [§5]: masks per image, relative size, concavity
by size, mask centres.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import reduce
from operator import add
from typing import TypeVar

import numpy as np
from pydantic import Field, model_validator

from engine.concavity import concavities
from stages.records import ImageRecord, ImageStatus, MaskRecord, Record, Source

Key = TypeVar("Key", bound=Hashable)
Edges = tuple[float, ...]

CENTRE_BINS = 33
"""A side; odd, so that masks as wide or high as the image fall in the middle."""
SIZE_STRATA = (0.1, 0.3)
"""Relative sizes that part small, medium and large masks; ours, the paper names no bounds."""


def _even_edges(bins: int, width: float) -> Edges:
    return tuple(round(i * width, 6) for i in range(bins + 1))


MASKS_PER_IMAGE_EDGES: Edges = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RELATIVE_SIZE_EDGES = _even_edges(50, 0.02)
CONCAVITY_EDGES = _even_edges(20, 0.05)
SCORE_EDGES = _even_edges(100, 0.01)
SECONDS_EDGES = _even_edges(30, 2.0)


class Histogram(Record):
    edges: Edges
    """Bin i holds values from edges[i] up to, not including, edges[i + 1]."""
    counts: tuple[int, ...]
    """One fewer than edges. Values beyond the ends are counted in the outermost bins."""

    @model_validator(mode="after")
    def _check(self) -> "Histogram":
        if len(self.counts) != len(self.edges) - 1:
            raise ValueError(
                f"{len(self.counts)} counts for {len(self.edges)} edges, not one fewer"
            )
        return self

    @classmethod
    def of(cls, values: Sequence[float], edges: Edges) -> "Histogram":
        counts = [0] * (len(edges) - 1)
        for index in np.searchsorted(edges, values, side="right").tolist() if len(values) else ():
            counts[min(max(index, 1), len(counts)) - 1] += 1
        return cls(edges=edges, counts=tuple(counts))

    def __add__(self, other: "Histogram") -> "Histogram":
        if self.edges != other.edges:
            raise ValueError(
                f"cannot add histograms of different bins: {len(self.edges)} edges up to "
                f"{self.edges[-1]}, and {len(other.edges)} up to {other.edges[-1]}"
            )
        return Histogram(edges=self.edges, counts=tuple(map(add, self.counts, other.counts)))

    @property
    def total(self) -> int:
        return sum(self.counts)


class Stats(Record):
    """Zero when made without arguments. Means are 0 where nothing was counted."""

    images: dict[ImageStatus, int] = Field(default_factory=dict)
    """Rows by status."""
    masks: dict[Source, int] = Field(default_factory=dict)
    drops: dict[str, int] = Field(default_factory=dict)
    """Refused candidates by reason."""

    masks_not_ok: int = 0
    """Those of images whose status is not ok: prefilled, and confirmed by nobody."""
    masks_per_image: Histogram = Histogram.of((), MASKS_PER_IMAGE_EDGES)
    """Of the images whose status is ok."""
    relative_size: Histogram = Histogram.of((), RELATIVE_SIZE_EDGES)
    """sqrt(mask area / image area)."""
    concavity: tuple[Histogram, Histogram, Histogram] = (Histogram.of((), CONCAVITY_EDGES),) * 3
    """1 - area / hull area; of small, medium and large masks, parted at SIZE_STRATA."""
    centres: tuple[tuple[int, ...], ...] = ((0,) * CENTRE_BINS,) * CENTRE_BINS
    """Masks by the centre of their box, the image stretched to a square; rows from the top."""
    predicted_iou: Histogram = Histogram.of((), SCORE_EDGES)
    stability_score: Histogram = Histogram.of((), SCORE_EDGES)

    seconds_per_annotated_mask: Histogram = Histogram.of((), SECONDS_EDGES)
    annotator_seconds: float = 0.0
    """Active time over all images; prefilled and automatic masks cost none."""
    clicks: int = 0
    """On annotated masks."""

    rle_bytes: int = 0
    """Of the masks' compressed runs."""
    image_pixels: int = 0
    """Of the images whose status is ok."""
    worker_seconds: float = 0.0
    """Wall time of workers, over all rows."""

    @classmethod
    def of(cls, record: ImageRecord) -> "Stats":
        masks = record.masks
        annotated = [mask for mask in masks if mask.source == Source.ANNOTATED]
        ok = record.status == ImageStatus.OK
        sizes = [relative_size(mask, record) for mask in masks]
        return cls(
            images={record.status: 1},
            masks=_sorted(Counter(mask.source for mask in masks)),
            drops=_sorted(record.drops),
            masks_not_ok=0 if ok else len(masks),
            masks_per_image=Histogram.of([len(masks)] if ok else [], MASKS_PER_IMAGE_EDGES),
            relative_size=Histogram.of(sizes, RELATIVE_SIZE_EDGES),
            concavity=_concavity_by_size(masks, sizes),
            centres=_centre_map(record),
            predicted_iou=Histogram.of([mask.predicted_iou for mask in masks], SCORE_EDGES),
            stability_score=Histogram.of([mask.stability_score for mask in masks], SCORE_EDGES),
            seconds_per_annotated_mask=Histogram.of(
                [mask.seconds for mask in annotated], SECONDS_EDGES
            ),
            annotator_seconds=record.annotator_seconds,
            clicks=sum(mask.num_clicks for mask in annotated),
            rle_bytes=sum(len(mask.segmentation.counts) for mask in masks),
            image_pixels=record.width * record.height if ok else 0,
            worker_seconds=record.worker_seconds,
        )

    @classmethod
    def total(cls, parts: Iterable["Stats"]) -> "Stats":
        return reduce(add, parts, cls())

    def __add__(self, other: "Stats") -> "Stats":
        small, medium, large = map(add, self.concavity, other.concavity)
        return Stats(
            images=_merge(self.images, other.images),
            masks=_merge(self.masks, other.masks),
            drops=_merge(self.drops, other.drops),
            masks_not_ok=self.masks_not_ok + other.masks_not_ok,
            masks_per_image=self.masks_per_image + other.masks_per_image,
            relative_size=self.relative_size + other.relative_size,
            concavity=(small, medium, large),
            centres=tuple(
                tuple(map(add, *rows)) for rows in zip(self.centres, other.centres, strict=True)
            ),
            predicted_iou=self.predicted_iou + other.predicted_iou,
            stability_score=self.stability_score + other.stability_score,
            seconds_per_annotated_mask=(
                self.seconds_per_annotated_mask + other.seconds_per_annotated_mask
            ),
            annotator_seconds=self.annotator_seconds + other.annotator_seconds,
            clicks=self.clicks + other.clicks,
            rle_bytes=self.rle_bytes + other.rle_bytes,
            image_pixels=self.image_pixels + other.image_pixels,
            worker_seconds=self.worker_seconds + other.worker_seconds,
        )

    @property
    def num_images(self) -> int:
        """All rows, whatever their status."""
        return sum(self.images.values())

    @property
    def num_masks(self) -> int:
        return sum(self.masks.values())

    @property
    def mean_masks_per_image(self) -> float:
        """Over the images whose status is ok, prefilled masks included, as the paper counts."""
        masks = self.num_masks - self.masks_not_ok
        return ratio(masks, self.images.get(ImageStatus.OK, 0))

    @property
    def seconds_per_mask(self) -> float:
        """Annotator time over annotated masks; prefilled ones are not counted, as in the paper."""
        return ratio(self.annotator_seconds, self.masks.get(Source.ANNOTATED, 0))

    @property
    def clicks_per_mask(self) -> float:
        """Over annotated masks."""
        return ratio(self.clicks, self.masks.get(Source.ANNOTATED, 0))

    @property
    def bytes_per_mask(self) -> float:
        return ratio(self.rle_bytes, self.num_masks)

    @property
    def worker_seconds_per_image(self) -> float:
        """Zero where annotators do the work, but for what workers prefill."""
        return ratio(self.worker_seconds, self.num_images)


def relative_size(mask: MaskRecord, image: ImageRecord) -> float:
    """Side of the square of the mask's area, the image's being 1."""
    return float((mask.area / (image.width * image.height)) ** 0.5)


def _concavity_by_size(
    masks: Sequence[MaskRecord], sizes: Sequence[float]
) -> tuple[Histogram, Histogram, Histogram]:
    strata: tuple[list[float], list[float], list[float]] = ([], [], [])
    places = np.searchsorted(SIZE_STRATA, sizes, side="right")
    values = concavities([mask.segmentation for mask in masks])
    for place, value in zip(places, values, strict=True):
        strata[place].append(value)
    small, medium, large = (Histogram.of(values, CONCAVITY_EDGES) for values in strata)
    return small, medium, large


def _centre_map(record: ImageRecord) -> tuple[tuple[int, ...], ...]:
    counts = [[0] * CENTRE_BINS for _ in range(CENTRE_BINS)]
    for mask in record.masks:
        x, y, width, height = mask.bbox
        column = int((x + width / 2) / record.width * CENTRE_BINS)
        row = int((y + height / 2) / record.height * CENTRE_BINS)
        counts[min(row, CENTRE_BINS - 1)][min(column, CENTRE_BINS - 1)] += 1
    return tuple(map(tuple, counts))


def _merge(first: dict[Key, int], second: dict[Key, int]) -> dict[Key, int]:
    return _sorted({key: first.get(key, 0) + second.get(key, 0) for key in first | second})


def _sorted(counts: dict[Key, int]) -> dict[Key, int]:
    """By key, and without zeros: equal Stats are equal as JSON too, whatever order made them."""
    return {key: counts[key] for key in sorted(counts, key=str) if counts[key]}


def ratio(amount: float, count: float) -> float:
    """0 where nothing was counted."""
    return amount / count if count else 0.0
