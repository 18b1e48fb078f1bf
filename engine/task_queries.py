"""Which tasks are meant: conditions and look-ups of the annotation queue, as SQL."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from engine.task_tables import ANSWERS, DRAFTS, TASKS, TaskKind, TaskState


def of_kind(round_index: int, kind: TaskKind) -> sa.ColumnElement[bool]:
    return (TASKS.c.round == round_index) & (TASKS.c.kind == kind)


def not_by(owner: str) -> sa.ColumnElement[bool]:
    """Reviews of what neither was handed in by this owner nor holds a mask of theirs."""
    theirs = sa.exists().where(DRAFTS.c.task_id == TASKS.c.subject, DRAFTS.c.owner == owner)
    return (TASKS.c.author != owner) & ~theirs


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


def ended_tasks(
    round_index: int, kind: TaskKind, image_ids: Sequence[int]
) -> sa.Select[tuple[int, str, str, str, str | None]]:
    """Tasks that have ended, with their answers where they have one."""
    answered = (ANSWERS.c.task_id == TASKS.c.task_id) & (ANSWERS.c.token == TASKS.c.token)
    return (
        sa.select(TASKS.c.image_id, TASKS.c.owner, TASKS.c.error, TASKS.c.state, ANSWERS.c.content)
        .select_from(TASKS.outerjoin(ANSWERS, answered & (TASKS.c.state == TaskState.SUBMITTED)))
        .where(
            of_kind(round_index, kind),
            TASKS.c.image_id.in_(image_ids),
            TASKS.c.state.in_((TaskState.SUBMITTED, TaskState.GIVEN_UP, TaskState.WITHDRAWN)),
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
