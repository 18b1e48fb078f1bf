"""A second look: the verdict that ends a review or an audit."""

from typing import Annotated

from fastapi import APIRouter, HTTPException
from pydantic import Field

from engine.task_tables import TaskKind
from stages.records import Verdict
from web.accounts import REVIEWERS
from web.dependencies import Somebody, TaskId, TheDesk, held, must_be
from web.task_routes import Submit

routes = APIRouter(prefix="/api")

MAX_NOTE = 1000


class HandInReview(Submit):
    verdict: Verdict
    note: Annotated[str, Field(max_length=MAX_NOTE, pattern=r"^[^\x00]*$")] = ""
    """PostgreSQL keeps no NUL."""


@routes.post("/tasks/{task_id}/review", status_code=204)
def review(task_id: TaskId, body: HandInReview, somebody: Somebody, desk: TheDesk) -> None:
    must_be(somebody, *REVIEWERS)
    lease = held(desk, task_id, body.lease, somebody)
    if lease.kind is TaskKind.ANNOTATE:
        raise HTTPException(422, f"task {task_id} is to be annotated, not reviewed")
    if lease.kind is TaskKind.AUDIT and body.verdict is Verdict.REDO:
        raise HTTPException(422, "verdict: nobody is there to redo automatic masks")
    if body.verdict is not Verdict.GOOD and not body.note.strip():
        raise HTTPException(422, f"note: say why the verdict is {body.verdict}")
    desk.review(lease, body.seconds, body.verdict, body.note.strip())
