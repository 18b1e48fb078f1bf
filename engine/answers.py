"""What handing in does beside ending a task: its figures, and the task that follows from it.

All within the transaction that ends the task, so nobody ever finds one without the other.
"""

from typing import Any

import sqlalchemy as sa

from engine.drafts import copy_drafts
from engine.task_queries import of_kind
from engine.task_tables import ANSWERS, TASKS, TaskKind, TaskState
from stages.records import ImageStatus, Review, Submission, Verdict


def store_answer(
    connection: sa.Connection, task: Any, answer: Submission | Review, submitted_at: float
) -> None:
    """
    Args:
        task: the row of the task that it ends.
    """
    copied = ("task_id", "token", "round", "kind", "image_id", "owner", "author")
    figures = _submitted(answer) if isinstance(answer, Submission) else _reviewed(answer)
    connection.execute(
        sa.insert(ANSWERS).values(
            **{name: getattr(task, name) for name in copied},
            submitted_at=submitted_at,
            seconds=answer.seconds,
            masks=len(answer.masks),
            content=answer.model_dump_json(),
            **figures,
        )
    )


def open_review(connection: sa.Connection, task: Any, _: Submission) -> None:
    """Of the answer just given to a task; one that sent the image back is begun anew."""
    here = of_kind(task.round, TaskKind.REVIEW) & (TASKS.c.image_id == task.image_id)
    fresh = {"state": TaskState.OPEN, "token": "", "author": task.owner, "subject": task.task_id}
    anew = fresh | {"hands": TASKS.c.hands + 1}  # its masks are others
    again = sa.update(TASKS).where(here).values(**anew).returning(TASKS.c.task_id)
    review = connection.scalar(again)
    if review is None:
        new = {"round": task.round, "kind": TaskKind.REVIEW, "image_id": task.image_id} | fresh
        review = connection.scalar(sa.insert(TASKS).returning(TASKS.c.task_id), new)
    copy_drafts(connection, task.task_id, review)


def send_back(connection: sa.Connection, task: Any, review: Review) -> None:
    """Where the verdict is redo: as if the answer looked at had never been given, but for its
    drafts and the reviewer's note."""
    if review.verdict is Verdict.REDO:
        connection.execute(sa.delete(ANSWERS).where(ANSWERS.c.task_id == task.subject))
        again = {"state": TaskState.OPEN, "token": "", "attempts": 0, "note": review.note}
        connection.execute(sa.update(TASKS).where(TASKS.c.task_id == task.subject).values(**again))


def _submitted(submission: Submission) -> dict[str, Any]:
    masks = submission.masks
    return {
        "ok": int(submission.status is ImageStatus.OK),
        "clicks": sum(mask.num_clicks for mask in masks),
        "brushed": sum(any(a.kind == "brush" for a in mask.interactions) for mask in masks),
    }


def _reviewed(review: Review) -> dict[str, Any]:
    return {
        "verdict": review.verdict.value,
        "compared": len(review.ious),
        "deleted": review.deleted,
        "added": review.added,
        "iou_sum": sum(review.ious),
        "above_90": sum(iou > 0.90 for iou in review.ious),
        "above_75": sum(iou > 0.75 for iou in review.ious),
    }
