"""A run that waits for people, and its server."""

import threading
import time
from dataclasses import dataclass

from fastapi.testclient import TestClient

from engine.run import tasks_url
from tiny_runs import TinyRun
from web.accounts import Accounts, Role
from web.app import create_app
from web.desk import Desk

HEADER = {"X-SA-Engine": "1"}
PEOPLE = {"annotator": "people"}


@dataclass
class Office:
    """A run in a thread of its own, and the server of the round that it waits for."""

    run: TinyRun
    thread: threading.Thread
    errors: list[BaseException]
    desk: Desk
    accounts: Accounts

    def client(self, name: str = "Ada", role: Role = Role.ANNOTATOR) -> TestClient:
        """A browser that has signed in, on an account of that name."""
        client = TestClient(create_app(self.desk, self.accounts), headers=HEADER)
        token = self.accounts.add(name, role)
        assert client.post("/api/login", json={"token": token}).status_code == 204
        return client

    def finish(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.errors:
            raise self.errors[0]


def open_office(run: TinyRun) -> Office:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not errors:
        try:
            desk = Desk(run.store)
            if desk.counts().left:
                url = tasks_url(run.store, run.config)
                return Office(run, thread, errors, desk, Accounts(url, clock=time.time))
        except Exception:  # the run has not come so far
            pass
        time.sleep(0.1)
    raise AssertionError(f"no round came to wait for people: {errors}")


def leave(office: Office) -> None:
    """Nobody waits for a run whose test is over: its last tasks are skipped."""
    while (lease := office.desk.queue.claim("nobody", office.desk.round.index)) is not None:
        office.desk.skip(lease, 0.0, "the test is over")
    office.thread.join(10)
