"""A run that waits for people, and its server."""

import threading
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient

from engine.errors import EngineError
from engine.run import tasks_url
from engine.task_tables import TaskKind
from stages.records import Review, Verdict
from stages.rle import encode_rle
from tiny_runs import TinyRun
from web.accounts import Accounts, Role
from web.app import create_app
from web.desk import Desk

HEADER = {"X-SA-Engine": "1"}
PEOPLE = {"annotator": "people"}
SIDE = 64
"""Of the images of a tiny run."""


@dataclass
class Office:
    """A run in a thread of its own, and the server of the round that it waits for."""

    run: TinyRun
    thread: threading.Thread
    errors: list[BaseException]
    desk: Desk
    accounts: Accounts

    @cached_property
    def app(self) -> FastAPI:
        return create_app(self.desk, self.accounts)

    def client(self, name: str = "Ada", role: Role = Role.ANNOTATOR) -> TestClient:
        """A browser that has signed in, on an account of that name."""
        client = TestClient(self.app, headers=HEADER)
        token = self.accounts.add(name, role)
        assert client.post("/api/login", json={"token": token}).status_code == 204
        return client

    def finish(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.errors:
            raise self.errors[0]


def on(tasks_url: str | None) -> dict[str, Any]:
    """Changes to the config of a run: where its tasks are."""
    return {"execution": {"tasks_url": tasks_url}}


def open_office(run: TinyRun) -> Office:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not errors:
        if (desk := _waiting_desk(run)) is not None:
            url = tasks_url(run.store, run.config)
            return Office(run, thread, errors, desk, Accounts(url, clock=time.time))
        time.sleep(0.1)
    raise AssertionError(f"no round came to wait for people: {errors}")


def _waiting_desk(run: TinyRun) -> Desk | None:
    """None while the run has not come so far."""
    try:
        desk = Desk(run.store)
    except (EngineError, OSError):
        return None
    try:
        if desk.tasks_left():
            return desk
    except EngineError:
        pass
    desk.close()
    return None


def leave(office: Office) -> None:
    """Nobody waits for a run whose test is over: its last tasks are skipped, its reviews done."""
    desk = office.desk
    deadline = time.monotonic() + 60
    while office.thread.is_alive() and time.monotonic() < deadline:
        index = desk.rounds.current().index
        for account in office.accounts.all():
            desk.queue.take_back(account.name, index)
        while (lease := desk.queue.claim("nobody", index)) is not None:
            desk.skip(lease, 0.0, "the test is over")
        while (lease := desk.queue.claim("nobody", index, TaskKind.REVIEW)) is not None:
            desk.queue.settle(lease, lambda _: Review(verdict=Verdict.GOOD, seconds=0.0))
        office.thread.join(0.1)
    desk.close()
    office.accounts.close()


def rle(y0: int = 5, x0: int = 5, y1: int = 30, x1: int = 30) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return encode_rle(mask).model_dump(mode="json")


def drawn(**changes: Any) -> dict[str, Any]:
    click = {
        "kind": "point",
        "coords": [12.0, 14.0],
        "label": 1,
        "output": 0,
        "seconds": 1.5,
        "predicted_iou": 0.8,
        "answer": rle(),
    }
    mask = {
        "segmentation": rle(),
        "predicted_iou": 0.8,
        "stability_score": 0.9,
        "seconds": 2.5,
        "interactions": [click],
    }
    return mask | changes


def claim(client: httpx.Client, kind: str = "annotate") -> dict[str, Any]:
    answer = client.post("/api/tasks/claim", json={"kind": kind})
    assert answer.status_code == 200, answer.text
    task: dict[str, Any] = answer.json()
    return task


def save(
    client: httpx.Client, task: dict[str, Any], mask: dict[str, Any], mask_id: str | None = None
) -> int:
    url = f"/api/tasks/{task['task_id']}/masks/{mask_id or uuid.uuid4().hex}"
    return client.put(url, json={"lease": task["lease"], "mask": mask}).status_code


def submit(client: httpx.Client, task: dict[str, Any], seconds: float = 9.0) -> int:
    body = {"lease": task["lease"], "seconds": seconds}
    return client.post(f"/api/tasks/{task['task_id']}/submit", json=body).status_code


def settle(
    client: httpx.Client, task: dict[str, Any], verdict: str = "good", note: str = ""
) -> int:
    body = {"lease": task["lease"], "seconds": 4.0, "verdict": verdict, "note": note}
    return client.post(f"/api/tasks/{task['task_id']}/review", json=body).status_code
