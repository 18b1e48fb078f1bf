"""A second look: the verdict that ends a review or an audit."""

from typing import Annotated

from fastapi import APIRouter, HTTPException
from pydantic import Field

from engine.review import mask_ious
from engine.task_tables import TaskKind
from engine.tasks import Lease
from stages.records import Review, Rle, Verdict
from web.accounts import REVIEWERS
from web.dependencies import Somebody, TaskId, TheDesk, held, must_be
from web.desk import Desk
from web.masks import mask_record
from web.task_routes import Submit

routes = APIRouter(prefix="/api")

MAX_NOTE = 1000


class HandInReview(Submit):
    verdict: Verdict
    note: Annotated[str, Field(max_length=MAX_NOTE)] = ""


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
    desk.queue.settle(lease, _review(desk, lease, body))


def _review(desk: Desk, lease: Lease, body: HandInReview) -> Review:
    saved, header = desk.saved(lease.task_id), desk.round_of(lease).plan.header
    before = _looked_at(desk, lease)
    after = {one.mask_id: one.mask.segmentation for one in saved}
    return Review(
        verdict=body.verdict,
        note=body.note.strip(),
        masks=tuple(mask_record(number, one, header) for number, one in enumerate(saved)),
        flagged=desk.flagged(lease.task_id),
        seconds=body.seconds,
        ious=mask_ious(before, after),
        deleted=len(before.keys() - after.keys()),
        added=len(after.keys() - before.keys()),
    )


def _looked_at(desk: Desk, lease: Lease) -> dict[str, Rle]:
    """The masks that were handed in, or that the model made, by the ids of their drafts."""
    if lease.subject is None:
        return desk.automatic_masks(lease.image_id)
    return {one.mask_id: one.mask.segmentation for one in desk.saved(lease.subject)}
