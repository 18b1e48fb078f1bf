"""What annotators and reviewers have done, as sums that the queue's database makes.

Each answer stands in its table with its figures beside it, so nothing here reads a mask, and a
question costs one pass over an index.
"""

from typing import Any

import sqlalchemy as sa
from pydantic import computed_field

from engine.stats import ratio
from engine.task_tables import ANSWERS, TaskKind
from engine.tasks import TaskQueue
from stages.records import Record, Verdict


class Effort(Record):
    """What was handed in by somebody, or in some time."""

    images: int = 0
    """Skipped ones not counted."""
    skipped: int = 0
    masks: int = 0
    clicks: int = 0
    brushed: int = 0
    """Masks that a brush or the eraser touched."""
    seconds: float = 0.0
    """Active time on the images, searching and discarded masks included."""

    @computed_field
    def masks_per_image(self) -> float:
        return ratio(self.masks, self.images)

    @computed_field
    def seconds_per_mask(self) -> float:
        return ratio(self.seconds, self.masks)

    @computed_field
    def clicks_per_mask(self) -> float:
        return ratio(self.clicks, self.masks)

    @computed_field
    def brush_share(self) -> float:
        return ratio(self.brushed, self.masks)


class TimedEffort(Effort):
    began: float
    """When the first of them was handed in, seconds since 1970."""
    ended: float


class Agreement(Record):
    """How masks agree with what a second person made of them."""

    good: int = 0
    redo: int = 0
    reject: int = 0
    """Images by verdict."""
    compared: int = 0
    """Masks of the images found good."""
    deleted: int = 0
    """Of those compared."""
    added: int = 0
    """Masks that were missing."""
    iou_sum: float = 0.0
    above_90: int = 0
    """Masks whose IoU with their correction is above 0.90."""
    above_75: int = 0

    @computed_field
    def mean_iou(self) -> float:
        """Deleted masks count as 0; 0 where nothing was compared."""
        return ratio(self.iou_sum, self.compared)

    @computed_field
    def share_above_90(self) -> float:
        return ratio(self.above_90, self.compared)

    @computed_field
    def share_above_75(self) -> float:
        return ratio(self.above_75, self.compared)


def effort(queue: TaskQueue, round_index: int) -> Effort:
    with queue.reading() as connection:
        row = connection.execute(sa.select(*_effort()).where(_annotated(round_index))).one()
    return Effort(**_figures(row))


def effort_by_owner(queue: TaskQueue, round_index: int) -> dict[str, Effort]:
    query = (
        sa.select(ANSWERS.c.owner, *_effort())
        .where(_annotated(round_index))
        .group_by(ANSWERS.c.owner)
        .order_by(ANSWERS.c.owner)
    )
    with queue.reading() as connection:
        rows = connection.execute(query).all()
    return {row.owner: Effort(**_figures(row, skip=1)) for row in rows}


def effort_over_time(queue: TaskQueue, round_index: int, bins: int) -> list[TimedEffort]:
    """In the order of handing in, in bins of as many images each; fewer bins for fewer images."""
    names = ("submitted_at", "ok", "masks", "clicks", "brushed", "seconds")
    place = sa.func.ntile(bins).over(order_by=ANSWERS.c.submitted_at).label("place")
    columns = (place, *(ANSWERS.c[name] for name in names))
    placed = sa.select(*columns).where(_annotated(round_index)).subquery()
    query = (
        sa.select(
            sa.func.min(placed.c.submitted_at).label("began"),
            sa.func.max(placed.c.submitted_at).label("ended"),
            *_effort(placed.c),
        )
        .group_by(placed.c.place)
        .order_by(placed.c.place)
    )
    with queue.reading() as connection:
        rows = connection.execute(query).all()
    return [TimedEffort(began=row.began, ended=row.ended, **_figures(row, skip=2)) for row in rows]


def agreement(queue: TaskQueue, round_index: int, kind: TaskKind) -> Agreement:
    """Of all reviews or of the audit of a round."""
    with queue.reading() as connection:
        row = connection.execute(sa.select(*_agreement()).where(_of(round_index, kind))).one()
    return Agreement(**_figures(row))


def agreement_by_author(queue: TaskQueue, round_index: int) -> dict[str, Agreement]:
    """Of those whose images were reviewed."""
    query = (
        sa.select(ANSWERS.c.author, *_agreement())
        .where(_of(round_index, TaskKind.REVIEW))
        .group_by(ANSWERS.c.author)
    )
    with queue.reading() as connection:
        rows = connection.execute(query).all()
    return {row.author: Agreement(**_figures(row, skip=1)) for row in rows}


def latest_images(queue: TaskQueue, round_index: int, limit: int) -> list[int]:
    """Ids of the images with masks that were handed in last, newest first."""
    query = (
        sa.select(ANSWERS.c.image_id)
        .where(_annotated(round_index), ANSWERS.c.masks > 0)
        .order_by(ANSWERS.c.submitted_at.desc())
        .limit(limit)
    )
    with queue.reading() as connection:
        return list(connection.scalars(query))


def latest_by_owner(queue: TaskQueue, round_index: int, each: int) -> dict[str, list[int]]:
    """The same, so many of each owner."""
    newest = ANSWERS.c.submitted_at.desc()
    rank = sa.func.row_number().over(partition_by=ANSWERS.c.owner, order_by=newest).label("rank")
    ranked = (
        sa.select(ANSWERS.c.owner, ANSWERS.c.image_id, rank)
        .where(_annotated(round_index), ANSWERS.c.masks > 0)
        .subquery()
    )
    query = sa.select(ranked).where(ranked.c.rank <= each).order_by(ranked.c.rank)
    latest: dict[str, list[int]] = {}
    with queue.reading() as connection:
        for row in connection.execute(query):
            latest.setdefault(row.owner, []).append(row.image_id)
    return latest


def _of(round_index: int, kind: TaskKind) -> sa.ColumnElement[bool]:
    return (ANSWERS.c.round == round_index) & (ANSWERS.c.kind == kind)


def _annotated(round_index: int) -> sa.ColumnElement[bool]:
    return _of(round_index, TaskKind.ANNOTATE)


def _effort(columns: Any = ANSWERS.c) -> list[sa.ColumnElement[Any]]:
    """Sums under the names of Effort's fields."""
    return [
        _sum(columns.ok).label("images"),
        _sum(1 - columns.ok).label("skipped"),
        *(_sum(columns[name]).label(name) for name in ("masks", "clicks", "brushed", "seconds")),
    ]


def _agreement() -> list[sa.ColumnElement[Any]]:
    """Sums under the names of Agreement's fields; masks count where the verdict is good."""
    verdict = ANSWERS.c.verdict
    masks = ("compared", "deleted", "added", "iou_sum", "above_90", "above_75")
    return [
        *(_sum(sa.case((verdict == v.value, 1), else_=0)).label(v.value) for v in Verdict),
        *(
            _sum(sa.case((verdict == Verdict.GOOD.value, ANSWERS.c[name]), else_=0)).label(name)
            for name in masks
        ),
    ]


def _sum(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.func.coalesce(sa.func.sum(column), 0)


def _figures(row: Any, *, skip: int = 0) -> dict[str, Any]:
    return dict(list(row._mapping.items())[skip:])
