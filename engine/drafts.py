"""What annotators have accepted and not handed in yet: parts of an answer, kept as they are made.

Whoever changes them holds the row of their task, so no answer is made while they change.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from engine.errors import TooLargeError
from engine.task_tables import DRAFTS
from stages.records import Record

MAX_DRAFTS = 2000
"""Of one task."""
MAX_CHARACTERS = 128 * 2**20
"""Of all drafts of one task: they become one answer, which a database must take."""


class Draft(Record):
    draft_id: str
    """Chosen by whoever saves it, so that saving twice is saving once."""
    owner: str
    content: str


def put_draft(connection: sa.Connection, task: Any, draft_id: str, content: str) -> None:
    """Keep a draft of its holder's, or replace it.

    Args:
        task: the row of a task that is held.

    Raises:
        TooLargeError: the task has as many as there may be.
    """
    mine = DRAFTS.c.task_id == task.task_id
    others = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(DRAFTS.c.size), 0),
        sa.func.coalesce(sa.func.max(DRAFTS.c.number), 0),
    ).where(mine, DRAFTS.c.draft_id != draft_id)
    count, size, highest = connection.execute(others).one()
    if count >= MAX_DRAFTS or size + len(content) > MAX_CHARACTERS:
        raise TooLargeError(
            f"image {task.image_id} has {count} masks of {size / 2**20:.0f} MiB; expected at most "
            f"{MAX_DRAFTS} of {MAX_CHARACTERS / 2**20:.0f} MiB: delete some, or hand it in"
        )
    draft = Draft(draft_id=draft_id, owner=task.owner, content=content)
    replaced = sa.update(DRAFTS).where(mine, DRAFTS.c.draft_id == draft_id)
    if not connection.execute(replaced.values(**_row(draft))).rowcount:
        add_drafts(connection, task.task_id, [draft], first=highest + 1)


def add_drafts(
    connection: sa.Connection, task_id: int, drafts: Iterable[Draft], *, first: int = 1
) -> None:
    """
    Args:
        first: number of the first; they are read in the order of their numbers.
    """
    rows = [
        {"task_id": task_id, "number": number, **_row(draft)}
        for number, draft in enumerate(drafts, start=first)
    ]
    if rows:
        connection.execute(sa.insert(DRAFTS), rows)


def copy_drafts(connection: sa.Connection, source: int, target: int) -> None:
    """In place of what the other task has."""
    copied = [column.name for column in DRAFTS.columns if column.name != "task_id"]
    copy = sa.select(sa.literal(target), *(DRAFTS.c[name] for name in copied))
    mine = copy.where(DRAFTS.c.task_id == source)
    connection.execute(sa.delete(DRAFTS).where(DRAFTS.c.task_id == target))
    connection.execute(sa.insert(DRAFTS).from_select(["task_id", *copied], mine))


def remove_draft(connection: sa.Connection, task_id: int, draft_id: str) -> None:
    mine = (DRAFTS.c.task_id == task_id) & (DRAFTS.c.draft_id == draft_id)
    connection.execute(sa.delete(DRAFTS).where(mine))


def drafts_of(connection: sa.Connection, task_id: int) -> list[Draft]:
    """In the order in which they were first saved."""
    query = sa.select(DRAFTS).where(DRAFTS.c.task_id == task_id).order_by(DRAFTS.c.number)
    return [
        Draft(draft_id=row.draft_id, owner=row.owner, content=row.content)
        for row in connection.execute(query)
    ]


def _row(draft: Draft) -> dict[str, Any]:
    return {**draft.model_dump(), "size": len(draft.content)}
