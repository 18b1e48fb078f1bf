"""Nothing accepted is lost: not by a killed server, an expired lease, or many at once."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import web.desk
from offices import HEADER, PEOPLE, Office, claim, drawn, leave, on, open_office, save, submit
from tiny_runs import MANUAL, TinyRun
from waiting_rounds import Server
from web.accounts import Role
from web.desk import Desk


def test_a_killed_server_loses_no_accepted_mask(office: Office) -> None:
    token = office.accounts.add("Ada", Role.ANNOTATOR)
    server = Server(office.run.out)
    server.start()
    try:
        with httpx.Client(base_url=server.url, headers=HEADER, timeout=60) as client:
            assert client.post("/api/login", json={"token": token}).status_code == 204
            task = claim(client)
            assert save(client, task, drawn()) == 204
            server.kill()
            with pytest.raises(httpx.TransportError):
                save(client, task, drawn())
            server.start()
            assert save(client, task, drawn()) == 204
            assert submit(client, task) == 204
            assert submit(client, claim(client)) == 204
    finally:
        server.kill()
    office.finish()
    masks = {record.image_id: len(record.masks) for record in office.run.records(0)}
    assert masks[task["image_id"]] == 2


def test_an_expired_lease_passes_the_task_on_with_its_masks(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web.desk, "LEASE_SECONDS", 0.3)
    office.desk.close()
    office.desk = Desk(office.run.store)
    ada, bob = office.client("Ada"), office.client("Bob")
    task = claim(ada)
    assert save(ada, task, drawn()) == 204
    time.sleep(0.5)
    assert save(ada, task, drawn()) == 204  # nobody has asked for it yet
    again = claim(bob)
    assert again["task_id"] == task["task_id"]
    assert [mask["annotator"] for mask in again["masks"]] == ["Ada", "Ada"]
    assert save(ada, task, drawn()) == 409


def test_every_mask_that_was_accepted_while_its_image_was_handed_in_is_handed_in(
    tmp_path: Path, tasks_url: str | None
) -> None:
    rounds = [MANUAL | PEOPLE | {"retrain": False}]
    office = open_office(TinyRun(tmp_path, rounds, 12, changes=on(tasks_url)))
    try:
        ada = office.client()

        def save_on(task: dict[str, Any]) -> int:
            return next(n for n in itertools.count() if save(ada, task, drawn()) != 204)

        accepted = {}
        with ThreadPoolExecutor(2) as pool:
            for _ in range(12):
                task = claim(ada)
                saving = [pool.submit(save_on, task) for _ in range(2)]
                time.sleep(0.1)
                assert submit(ada, task) == 204
                accepted[task["image_id"]] = sum(each.result() for each in saving)
        office.finish()
        assert {r.image_id: len(r.masks) for r in office.run.records(0)} == accepted
    finally:
        leave(office)


def test_many_at_once_never_hold_one_task(tmp_path: Path, tasks_url: str | None) -> None:
    rounds = [MANUAL | PEOPLE | {"retrain": False}]
    office = open_office(TinyRun(tmp_path, rounds, 24, changes=on(tasks_url)))
    try:

        def annotate(client: httpx.Client) -> list[int]:
            done = []
            while (answer := client.post("/api/tasks/claim")).status_code == 200:
                task = answer.json()
                assert save(client, task, drawn()) == 204
                assert submit(client, task) == 204
                done.append(task["image_id"])
            return done

        clients = [office.client(f"annotator {number}") for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            done = [image_id for mine in pool.map(annotate, clients) for image_id in mine]
        assert len(done) == len(set(done)) == 24
        office.finish()
        assert all(len(record.masks) == 1 for record in office.run.records(0))
    finally:
        leave(office)
