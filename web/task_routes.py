"""Tasks: claimed, worked on under a lease, and handed in."""

from typing import Annotated

from fastapi import APIRouter, HTTPException
from pydantic import Field, FiniteFloat

from engine.task_tables import TaskKind
from engine.tasks import Lease
from stages.records import DraftMask, Record
from web.accounts import REVIEWERS
from web.dependencies import ImageId, MaskId, Somebody, TaskId, TheDesk, held, must_be
from web.desk import Task
from web.progress import Progress

routes = APIRouter(prefix="/api")

Seconds = Annotated[FiniteFloat, Field(ge=0, le=24 * 3600)]


class Claim(Record):
    kind: TaskKind = TaskKind.ANNOTATE
    holding: (
        Annotated[tuple[Annotated[int, Field(ge=1, lt=2**31)], ...], Field(max_length=100)] | None
    ) = None
    """Tasks that pages open in this browser work on: whatever else it leases is handed out anew.
    None: the browser cannot tell, and nothing is taken from anybody."""
    ahead: bool = False
    """To be worked on after the one in hand: refused when few are left for others."""


class Held(Record):
    """Whatever is done to a task names the lease it is done under."""

    lease: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class SaveMask(Held):
    mask: DraftMask


class Flag(Held):
    flagged: bool


class Submit(Held):
    seconds: Seconds


class Skip(Submit):
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Renewed(Record):
    expires_in: float


@routes.post("/tasks/claim")
def claim(somebody: Somebody, desk: TheDesk, body: Claim | None = None) -> Task:
    wanted = Claim() if body is None else body
    if wanted.kind is not TaskKind.ANNOTATE:
        must_be(somebody, *REVIEWERS)
    task = desk.claim(
        somebody.name,
        wanted.kind,
        browser=somebody.session,
        holding=wanted.holding,
        ahead=wanted.ahead,
    )
    if task is None:
        raise HTTPException(204)
    return task


@routes.post("/tasks/{task_id}/renew")
def renew(task_id: TaskId, body: Held, somebody: Somebody, desk: TheDesk) -> Renewed:
    return Renewed(expires_in=desk.renew(held(desk, task_id, body.lease, somebody)))


@routes.put("/tasks/{task_id}/masks/{mask_id}", status_code=204)
def save(
    task_id: TaskId, mask_id: MaskId, body: SaveMask, somebody: Somebody, desk: TheDesk
) -> None:
    desk.save(held(desk, task_id, body.lease, somebody), mask_id, body.mask)


@routes.delete("/tasks/{task_id}/masks/{mask_id}", status_code=204)
def delete(task_id: TaskId, mask_id: MaskId, body: Held, somebody: Somebody, desk: TheDesk) -> None:
    desk.delete(held(desk, task_id, body.lease, somebody), mask_id)


@routes.put("/tasks/{task_id}/flags/{prefilled_id}", status_code=204)
def flag(
    task_id: TaskId, prefilled_id: ImageId, body: Flag, somebody: Somebody, desk: TheDesk
) -> None:
    desk.flag(held(desk, task_id, body.lease, somebody), prefilled_id, body.flagged)


@routes.post("/tasks/{task_id}/submit", status_code=204)
def submit(task_id: TaskId, body: Submit, somebody: Somebody, desk: TheDesk) -> None:
    desk.submit(_annotated(held(desk, task_id, body.lease, somebody)), body.seconds)


@routes.post("/tasks/{task_id}/skip", status_code=204)
def skip(task_id: TaskId, body: Skip, somebody: Somebody, desk: TheDesk) -> None:
    lease = _annotated(held(desk, task_id, body.lease, somebody))
    desk.skip(lease, body.seconds, body.reason)


@routes.post("/tasks/{task_id}/release", status_code=204)
def release(task_id: TaskId, body: Held, somebody: Somebody, desk: TheDesk) -> None:
    desk.release(held(desk, task_id, body.lease, somebody))


@routes.get("/progress")
def progress(somebody: Somebody, desk: TheDesk, kind: TaskKind = TaskKind.ANNOTATE) -> Progress:
    return desk.progress.of(kind)


def _annotated(lease: Lease) -> Lease:
    if lease.kind is not TaskKind.ANNOTATE:
        raise HTTPException(422, f"task {lease.task_id} is a {lease.kind}: it ends with a verdict")
    return lease
