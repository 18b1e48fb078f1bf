"""Which tasks are meant: conditions and look-ups of the annotation queue, as SQL."""

from collections.abc import Collection

import sqlalchemy as sa

from engine.task_tables import DRAFTS, TASKS, TaskKind, TaskState


def of_kind(round_index: int, kind: TaskKind) -> sa.ColumnElement[bool]:
    return (TASKS.c.round == round_index) & (TASKS.c.kind == kind)


def not_by(owner: str) -> sa.ColumnElement[bool]:
    """Reviews of what neither was handed in by this owner nor holds a mask of theirs."""
    theirs = sa.exists().where(DRAFTS.c.task_id == TASKS.c.subject, DRAFTS.c.owner == owner)
    return (TASKS.c.author != owner) & ~theirs


def expired(now: float) -> sa.ColumnElement[bool]:
    """Nobody holds them any more, though nobody gave them back."""
    return (TASKS.c.state == TaskState.LEASED) & (TASKS.c.expires_at <= now)


def free_task(wanted: sa.ColumnElement[bool], now: float) -> sa.ColumnElement[int]:
    """Id of the next task that nobody holds, as SQL."""
    # Two look-ups in the index: one for either state would sort all that are left, every time.
    free = (expired(now), TASKS.c.state == TaskState.OPEN)
    return sa.func.coalesce(*(first_task(wanted & one) for one in free))


def left_behind(
    wanted: sa.ColumnElement[bool], owner: str, holder: str, holding: Collection[int]
) -> sa.ScalarSelect[int]:
    """Id of the first task that a holder leases and none of its living pages works on, as SQL."""
    return first_task(
        sa.and_(
            wanted,
            TASKS.c.state == TaskState.LEASED,
            TASKS.c.owner == owner,
            TASKS.c.holder == holder,
            TASKS.c.task_id.not_in(list(holding)),
        )
    )


def first_task(condition: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return (
        sa.select(TASKS.c.task_id)
        .where(condition)
        .order_by(TASKS.c.task_id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        .scalar_subquery()
    )
