"""A people's round over still lifes, served by the real server in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from engine import layout
from engine.corpus import Corpus
from engine.run import tasks_url
from engine.shards import read_record
from engine.task_results import TaskResult, task_results
from engine.task_tables import ANSWERS, DRAFTS, TASKS, TaskKind, TaskState
from engine.tasks import TaskCounts
from offices import PEOPLE, Office, leave, open_office
from stages.records import MaskRecord, Review, Submission
from still_lifes import write_still_lifes
from tiny_runs import MANUAL, SEMI, TinyRun
from web.accounts import Role
from web.desk import SavedMask

TESTS = Path(__file__).parent
STAGE_ONE: list[dict[str, Any]] = [MANUAL | PEOPLE | {"retrain": False}]
STAGE_TWO: list[dict[str, Any]] = [
    MANUAL | {"images": 2, "retrain": False},
    SEMI | PEOPLE | {"retrain": False},
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """`tests/annotation_server.py` of one run, on one port for as long as it is needed."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = str(TESTS / "annotation_server.py")
        command = [sys.executable, program, str(self._run), str(self._port)]
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self._process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None
            try:
                httpx.get(f"{self.url}/api/me")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


@dataclass
class WaitingRound:
    office: Office
    server: Server
    index: int

    @cached_property
    def _image_ids(self) -> dict[str, int]:
        corpus, planned = Corpus(self.office.run.store), self.office.run.planned(self.index)
        return {corpus.row(image_id).file_name: image_id for image_id in planned}

    @cached_property
    def _database(self) -> sa.Engine:
        return sa.create_engine(tasks_url(self.office.run.store, self.office.run.config))

    def token(self, name: str, role: Role = Role.ANNOTATOR) -> str:
        return self.office.accounts.add(name, role)

    def submission(self, file_name: str) -> Submission | None:
        """What was handed in for an image."""
        result = self._result(file_name)
        return result.submission if result else None

    def review(self, file_name: str) -> Review | None:
        result = self._result(file_name)
        return result.review if result else None

    def _result(self, file_name: str) -> TaskResult | None:
        image_id = self._image_ids[file_name]
        return task_results(self.office.desk.queue, self.index, [image_id]).get(image_id)

    def prefilled(self, file_name: str) -> tuple[MaskRecord, ...]:
        """What the model drew of an image before anybody saw it."""
        run = self.office.run
        place = run.planned(self.index).index(self._image_ids[file_name])
        shard, row = divmod(place, run.config.images_per_shard)
        folder = layout.proposals_folder(run.config.round_folder(self.index))
        return read_record(run.store, layout.shard_path(folder, shard), row).masks

    def saved(self, task_id: int) -> tuple[SavedMask, ...]:
        return self.office.desk.saved(task_id)

    def counts(self) -> TaskCounts:
        return self.office.desk.queue.counts(self.index)

    def begin_anew(self) -> None:
        """Every task of the round is open again and empty, and nobody is signed in: a page of
        before may still ask for one."""
        for account in self.office.accounts.all():
            self.office.accounts.remove(account.name)
        fresh = {"state": TaskState.OPEN, "token": "", "owner": "", "note": ""}
        reviews = (TASKS.c.round == self.index) & (TASKS.c.kind != TaskKind.ANNOTATE)
        with self._database.begin() as connection:
            connection.execute(sa.delete(DRAFTS))
            connection.execute(sa.delete(ANSWERS).where(ANSWERS.c.round == self.index))
            connection.execute(sa.delete(TASKS).where(reviews))
            connection.execute(sa.update(TASKS).where(TASKS.c.round == self.index).values(fresh))

    def expire_leases(self) -> None:
        """As if everybody had been silent for too long."""
        with self._database.begin() as connection:
            connection.execute(sa.update(TASKS).values(expires_at=0))


@contextmanager
def waiting_round(
    folder: Path, rounds: Sequence[dict[str, Any]], images: int, **changes: Any
) -> Iterator[WaitingRound]:
    """The last of `rounds` waits for people."""
    write_still_lifes(folder / "drawn", images)
    run = TinyRun(folder, rounds, images, changes={"checkpoint": "sa-tiny"} | changes)
    office = open_office(run)
    office.accounts.add("Mona", Role.MANAGER)  # a server that nobody may sign in to does not start
    server = Server(run.out)
    try:
        server.start()
        yield WaitingRound(office, server, len(rounds) - 1)
    finally:
        server.kill()
        leave(office)
