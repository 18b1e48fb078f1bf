"""How the tasks of a round ended: what its shards are made of."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from engine.task_queries import of_kind
from engine.task_tables import ANSWERS, TASKS, TaskKind, TaskState
from engine.tasks import TaskQueue
from stages.records import Record, Review, Submission, Verdict

MOST_VALUES = 10_000
"""In one statement; PostgreSQL takes 65,535."""
ENDED = (TaskState.SUBMITTED, TaskState.GIVEN_UP, TaskState.WITHDRAWN)


class TaskResult(Record):
    image_id: int
    submission: Submission | None
    """None when the task was given up or withdrawn."""
    error: str
    withdrawn: bool = False
    owner: str = ""
    """Who held it last."""
    review: Review | None = None
    """None when nobody looked at it again."""


def task_results(
    queue: TaskQueue, round_index: int, image_ids: Sequence[int]
) -> dict[int, TaskResult]:
    """Of those of these images whose tasks have ended."""
    with queue.reading() as connection:
        tasks = _ended(connection, round_index, TaskKind.ANNOTATE, image_ids)
        reviews = _ended(connection, round_index, TaskKind.REVIEW, image_ids)
    looked_at = {row.image_id: Review.model_validate_json(row.content) for row in reviews}
    # One that sent the image back is of an answer that is no more.
    settled = {i: review for i, review in looked_at.items() if review.verdict is not Verdict.REDO}
    return {
        row.image_id: TaskResult(
            image_id=row.image_id,
            submission=row.content and Submission.model_validate_json(row.content),
            owner=row.owner,
            error=row.error,
            withdrawn=row.state == TaskState.WITHDRAWN,
            review=settled.get(row.image_id),
        )
        for row in tasks
    }


def _ended(
    connection: sa.Connection, round_index: int, kind: TaskKind, image_ids: Sequence[int]
) -> list[Any]:
    """Tasks that have ended, with their answers where they have one."""
    answered = (ANSWERS.c.task_id == TASKS.c.task_id) & (ANSWERS.c.token == TASKS.c.token)
    query = (
        sa.select(TASKS.c.image_id, TASKS.c.owner, TASKS.c.error, TASKS.c.state, ANSWERS.c.content)
        .select_from(TASKS.outerjoin(ANSWERS, answered & (TASKS.c.state == TaskState.SUBMITTED)))
        .where(of_kind(round_index, kind), TASKS.c.state.in_(ENDED))
    )
    wanted = [int(image_id) for image_id in image_ids]
    parts = [wanted[i : i + MOST_VALUES] for i in range(0, len(wanted), MOST_VALUES)]
    queries = (query.where(TASKS.c.image_id.in_(part)) for part in parts)
    return [row for query in queries for row in connection.execute(query)]
