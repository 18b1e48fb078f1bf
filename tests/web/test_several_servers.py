"""Several servers of one round, as on a cluster: each request may meet another one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from engine.effort import effort
from engine.embeddings import Embedding
from offices import (
    HEADER,
    PEOPLE,
    Office,
    claim,
    drawn,
    leave,
    on,
    open_office,
    rle,
    save,
    settle,
    submit,
)
from stages.records import Rle
from tiny_runs import MANUAL, TinyRun
from web.accounts import Role
from web.app import create_app
from web.desk import Desk
from web.encoding import Seen
from web.open_round import OpenRound


@pytest.fixture
def second(office: Office) -> Iterator[Desk]:
    desk = Desk(office.run.store)
    yield desk
    desk.close()


def beside(office: Office, desk: Desk, client: TestClient) -> TestClient:
    """The same browser, answered by another server."""
    other = TestClient(create_app(desk, office.accounts), headers=HEADER)
    other.cookies = client.cookies
    return other


def test_a_server_learns_of_the_next_round_by_what_it_is_asked_for(
    tmp_path: Path, tasks_url: str | None
) -> None:
    rounds = [MANUAL | PEOPLE | {"images": 1}, MANUAL | PEOPLE | {"images": 1, "retrain": False}]
    office = open_office(TinyRun(tmp_path, rounds, 2, changes=on(tasks_url)))
    names = ("me", "image", "embedding", "decoder", "decode", "save")
    desks = {name: Desk(office.run.store) for name in names}
    ada = office.client()
    elsewhere = {name: beside(office, desk, ada) for name, desk in desks.items()}
    for client in elsewhere.values():
        assert client.get("/api/me").json()["round"] == 0  # each knows the first round
    first = claim(ada)
    assert save(ada, first, drawn()) == 204
    assert submit(ada, first) == 204
    deadline = time.monotonic() + 60
    while (answer := ada.post("/api/tasks/claim")).status_code == 204:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = answer.json()
    image = second["image_id"]
    assert elsewhere["me"].get("/api/me").json()["round"] == 1
    assert elsewhere["image"].get(f"/api/images/{image}").status_code == 200
    embedding = elsewhere["embedding"].get(f"/api/embeddings/{image}")
    assert embedding.status_code == 200
    decoder = elsewhere["decoder"].get("/api/decoder")
    assert decoder.headers["ETag"] == f'"{second["checkpoint"]}"'
    assert decoder.content == office.desk.rounds.known.decoder.file.content
    question = {"image_id": image, "point_coords": [[9, 9], [0, 0]], "point_labels": [1, -1]}
    answers = [c.post("/api/decode", json=question).json() for c in (ada, elsewhere["decode"])]
    assert answers[0] == answers[1]
    assert save(elsewhere["save"], second, drawn()) == 204
    assert submit(elsewhere["save"], second) == 204
    office.finish()
    (record,) = office.run.records(1)
    assert [mask.checkpoint for mask in record.masks] == [second["checkpoint"]]
    for desk in desks.values():
        desk.close()
    leave(office)


def test_what_was_handed_in_and_arrives_again_when_the_round_is_over_is_answered_as_before(
    tmp_path: Path, tasks_url: str | None
) -> None:
    one = MANUAL | PEOPLE | {"images": 1, "retrain": False, "review_share": 1.0}
    office = open_office(TinyRun(tmp_path, [one, one], 2, changes=on(tasks_url)))
    ada, rae = office.client(), office.client("Rae", Role.REVIEWER)
    late = claim(ada)
    assert save(ada, late, drawn()) == 204
    assert submit(ada, late) == 204
    review = claim(rae, "review")
    assert settle(rae, review) == 204
    deadline = time.monotonic() + 30
    while office.desk.rounds.current().index == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert submit(ada, late) == 204
    assert settle(rae, review, "reject", "changed my mind") == 204
    assert save(ada, late, drawn()) == 409
    assert submit(ada, late | {"lease": "0" * 32}) == 409
    (record,) = office.run.records(0)
    assert len(record.masks) == 1
    assert effort(office.desk.queue, 0).images == 1
    leave(office)


def test_flags_raised_through_two_servers_at_once_all_stay(
    semi_office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = semi_office.client()
    task = claim(ada)
    desk = Desk(semi_office.run.store)
    clients = [ada, beside(semi_office, desk, ada)]
    many = {number: Rle(**rle()) for number in range(24)}
    monkeypatch.setattr(OpenRound, "prefilled", lambda *_: many)

    def flag(number: int) -> int:
        url = f"/api/tasks/{task['task_id']}/flags/{number}"
        body = {"lease": task["lease"], "flagged": True}
        return clients[number % 2].put(url, json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(flag, many)) == {204}
    drafts = desk.queue.drafts(task["task_id"])
    assert {draft.draft_id for draft in drafts} == {f"flag-{number}" for number in many}
    desk.close()


def test_an_embedding_that_nobody_stored_is_asked_for_once(office: Office) -> None:
    task = claim(office.client())
    stored = next((office.run.out / "embeddings").rglob("*.npy"))
    for file in (office.run.out / "embeddings").rglob("*.npy"):
        file.unlink()
    asked = []

    def embed(checkpoint: str, seen: Seen) -> Embedding:
        asked.append((checkpoint, seen))
        return np.zeros((1, *task["embedding_shape"]), np.float16)

    desk = Desk(office.run.store, embed)
    mine = desk.rounds.known
    assert not desk.images.embedding(mine, task["image_id"]).any()
    assert asked == [(task["checkpoint"], Seen(desk.images.row(task["image_id"])))]
    stores = office.desk.images  # which embeds here
    assert stores.embedding(mine, task["image_id"]).any()
    assert stored.exists() or any((office.run.out / "embeddings").rglob("*.npy"))
    assert desk.images.embedding(mine, task["image_id"]).any()
    assert len(asked) == 1
    desk.close()
