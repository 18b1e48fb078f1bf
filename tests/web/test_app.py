"""The annotation server over HTTP, as the page uses it."""

import base64
import errno
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import engine.reading
from engine.context import WorkerContext
from offices import (
    HEADER,
    PEOPLE,
    SIDE,
    Office,
    claim,
    drawn,
    leave,
    on,
    open_office,
    rle,
    save,
    submit,
)
from stages.predictor import Image
from stages.records import ImageStatus, Source
from tiny_runs import MANUAL, SEMI, TinyRun
from web.accounts import Role


def test_what_people_draw_goes_into_the_shards_and_the_run_goes_on(office: Office) -> None:
    client = office.client("Zoë")
    first, second = claim(client), claim(client)
    assert first["image_id"] != second["image_id"]
    assert (first["width"], first["height"]) == (SIDE, SIDE)
    assert save(client, first, drawn()) == 204
    assert submit(client, first) == 204
    skip = {"lease": second["lease"], "seconds": 3.0, "reason": "blurred"}
    assert client.post(f"/api/tasks/{second['task_id']}/skip", json=skip).status_code == 204
    assert client.post("/api/tasks/claim").status_code == 204  # nothing left
    office.finish()
    by_id = {record.image_id: record for record in office.run.records(0)}
    (mask,) = by_id[first["image_id"]].masks
    assert (mask.annotator, mask.source, mask.seconds) == ("Zoë", Source.ANNOTATED, 2.5)
    assert (mask.num_clicks, mask.point_coords) == (1, ((12.0, 14.0),))
    assert mask.segmentation.model_dump(mode="json") == rle()
    assert mask.checkpoint == first["checkpoint"]
    assert by_id[first["image_id"]].annotator_seconds == 9.0
    skipped = by_id[second["image_id"]]
    assert (skipped.status, skipped.error) == (ImageStatus.SKIPPED, "blurred")
    office.run.assert_whole()


def test_prefilled_masks_called_wrong_are_dropped_though_the_image_is_skipped(
    tmp_path: Path,
) -> None:
    rounds = [MANUAL | {"images": 2, "retrain": False}, SEMI | PEOPLE | {"retrain": False}]
    office = open_office(TinyRun(tmp_path, rounds, num_images=4))
    try:
        ada = office.client()
        task = claim(ada)
        wrong = [mask["id"] for mask in task["prefilled"]]
        flag = {"lease": task["lease"], "flagged": True}
        for mask_id in wrong:
            address = f"/api/tasks/{task['task_id']}/flags/{mask_id}"
            assert ada.put(address, json=flag).status_code == 204
        skip = {"lease": task["lease"], "seconds": 1.0, "reason": "a test card"}
        for _ in range(2):  # the page may have missed the first answer
            assert ada.post(f"/api/tasks/{task['task_id']}/skip", json=skip).status_code == 204
        assert submit(ada, claim(ada)) == 204
        office.finish()
        (skipped,) = (r for r in office.run.records(1) if r.image_id == task["image_id"])
        assert (skipped.status, skipped.masks) == (ImageStatus.SKIPPED, ())
        assert skipped.drops["flagged"] == len(wrong) > 0
    finally:
        leave(office)


def test_an_image_that_storage_refuses_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_uri, read = engine.reading.read_uri, set()

    def failing(uri: str) -> bytes:
        if uri.endswith("001.png") and uri in read:
            raise OSError(errno.EIO, "Input/output error")
        read.add(uri)  # the corpus could still read it
        return read_uri(uri)

    monkeypatch.setattr(engine.reading, "read_uri", failing)
    monkeypatch.setattr(engine.reading.time, "sleep", lambda seconds: None)
    office = open_office(TinyRun(tmp_path, [MANUAL | PEOPLE | {"retrain": False}], num_images=3))
    try:
        client = office.client()
        answers = [client.get(f"/api/images/{image_id}").status_code for image_id in range(3)]
        assert answers == [200, 410, 200]  # 410: cannot be shown, skip it
    finally:
        leave(office)


def test_an_image_longer_than_a_jpeg_can_be_stops_nobody(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = office.client()

    def shown(side: int) -> int:
        long = Image(0, np.zeros((1, side, 3), dtype=np.uint8))
        monkeypatch.setattr(WorkerContext, "read_image", lambda self, row: long)
        return client.get("/api/images/0").status_code

    assert [shown(65_500), shown(65_501)] == [200, 410]


def test_saved_masks_outlive_their_annotator(office: Office) -> None:
    ada, bob = office.client("Ada"), office.client("Bob")
    task = claim(ada)
    kept = uuid.uuid4().hex
    assert save(ada, task, drawn(), kept) == 204
    assert ada.post(
        f"/api/tasks/{task['task_id']}/release", json={"lease": task["lease"]}
    ).is_success
    claimed = [claim(bob), claim(bob)]
    again = next(t for t in claimed if t["task_id"] == task["task_id"])
    assert [(m["mask_id"], m["annotator"]) for m in again["masks"]] == [(kept, "Ada")]
    assert save(ada, task, drawn()) == 409  # her lease has passed on
    assert submit(ada, task) == 409
    assert save(bob, again, drawn(segmentation=rle(40, 40, 50, 50))) == 204
    assert submit(bob, again) == 204
    for other in claimed:
        submit(bob, other)
    office.finish()
    record = next(r for r in office.run.records(0) if r.image_id == task["image_id"])
    assert [mask.annotator for mask in record.masks] == ["Ada", "Bob"]


def test_nobody_gets_a_task_ahead_when_few_are_left(office: Office) -> None:
    ada, bob = office.client("Ada"), office.client("Bob")

    def claimed(client: TestClient, ahead: bool) -> bool:
        answer = client.post("/api/tasks/claim", json={"ahead": ahead})
        return answer.status_code == 200

    assert claimed(ada, ahead=True)  # two were open
    assert not claimed(ada, ahead=True)
    assert claimed(bob, ahead=False)


def test_a_page_that_died_finds_its_task_again_and_one_that_lives_keeps_its_own(
    office: Office,
) -> None:
    def held(client: TestClient, holding: list[int] | None) -> dict[str, Any]:
        answer = client.post("/api/tasks/claim", json={"holding": holding})
        assert answer.status_code == 200
        task: dict[str, Any] = answer.json()
        return task

    ada = office.client("Ada")
    died = held(ada, [])
    assert save(ada, died, drawn()) == 204
    again = held(ada, [])
    assert (again["task_id"], len(again["masks"])) == (died["task_id"], 1)
    assert save(ada, died, drawn()) == 409  # one lease a task
    ahead = held(ada, [again["task_id"]])
    assert ahead["task_id"] != again["task_id"]
    both = [again["task_id"], ahead["task_id"]]
    assert ada.post("/api/tasks/claim", json={"holding": both}).status_code == 204
    assert save(ada, again, drawn()) == save(ada, ahead, drawn()) == 204
    for wrong in ([0], ["x"], [2**40], list(range(1, 200)), "all"):
        assert ada.post("/api/tasks/claim", json={"holding": wrong}).status_code == 422


def test_the_same_person_elsewhere_takes_nothing_from_their_other_browser(office: Office) -> None:
    token = office.accounts.add("Ada", Role.ANNOTATOR)
    desk, laptop = (TestClient(office.app, headers=HEADER) for _ in range(2))
    for browser in (desk, laptop):
        assert browser.post("/api/login", json={"token": token}).status_code == 204
    task = desk.post("/api/tasks/claim", json={"holding": []}).json()
    other = laptop.post("/api/tasks/claim", json={"holding": []}).json()
    assert other["task_id"] != task["task_id"]
    assert save(desk, task, drawn()) == 204


def test_saving_deleting_and_submitting_twice_count_once(office: Office) -> None:
    client = office.client()
    task, one, two = claim(client), uuid.uuid4().hex, uuid.uuid4().hex
    for mask in (drawn(), drawn(segmentation=rle(1, 1, 9, 9))):
        assert save(client, task, mask, one) == 204
    assert save(client, task, drawn(), two) == 204
    url = f"/api/tasks/{task['task_id']}/masks/{two}"
    for _ in range(2):
        body = {"lease": task["lease"]}
        assert client.request("DELETE", url, json=body).status_code == 204
    assert [submit(client, task, seconds) for seconds in (4.0, 5.0)] == [204, 204]
    assert save(client, task, drawn()) == 409  # it is handed in
    submit(client, claim(client))
    office.finish()
    record = next(r for r in office.run.records(0) if r.image_id == task["image_id"])
    (mask,) = record.masks
    assert mask.segmentation.model_dump(mode="json") == rle(1, 1, 9, 9)
    assert record.annotator_seconds == 4.0


def test_a_prefilled_round_shows_what_the_model_drew(semi_office: Office) -> None:
    client = semi_office.client()
    tasks = [claim(client), claim(client)]
    assert {task["stage"] for task in tasks} == {"semi_automatic"}
    shown = {task["image_id"]: len(task["prefilled"]) for task in tasks}
    first = max(tasks, key=lambda task: len(task["prefilled"]))
    url = f"/api/tasks/{first['task_id']}/flags/{first['prefilled'][0]['id']}"
    for flagged in (True, False, True):
        body = {"lease": first["lease"], "flagged": flagged}
        assert client.put(url, json=body).status_code == 204
    for task in tasks:
        assert save(client, task, drawn()) == 204
        assert submit(client, task) == 204
    progress = client.get("/api/progress").json()
    assert (progress["submitted"], progress["masks"], progress["open"]) == (2, 2, 0)
    assert (progress["seconds_per_mask"], progress["reviews_left"]) == (9.0, 0)
    semi_office.finish()
    for record in semi_office.run.records(1):
        sources = [mask.source for mask in record.masks]
        left = shown[record.image_id] - (record.image_id == first["image_id"])
        assert sources == [Source.PREFILLED] * left + [Source.ANNOTATED]
        assert record.drops.get("flagged", 0) == shown[record.image_id] - left
        assert [mask.id for mask in record.masks] == list(range(len(sources)))


def test_the_next_round_is_taken_up_when_one_is_over(tmp_path: Path, tasks_url: str | None) -> None:
    rounds = [MANUAL | PEOPLE | {"images": 1}, MANUAL | PEOPLE | {"images": 1, "retrain": False}]
    office = open_office(TinyRun(tmp_path, rounds, 2, changes=on(tasks_url)))
    client = office.client()
    first = claim(client)
    assert save(client, first, drawn()) == 204
    assert submit(client, first) == 204
    deadline = time.monotonic() + 60
    while (answer := client.post("/api/tasks/claim")).status_code == 204:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = answer.json()
    assert second["checkpoint"].startswith("round-00@")
    assert second["checkpoint"] != first["checkpoint"]
    assert client.get("/api/me").json()["round"] == 1
    assert client.get("/api/decoder").headers["ETag"] == f'"{second["checkpoint"]}"'
    assert submit(client, second) == 204
    office.finish()
    office.run.assert_whole()
    leave(office)


def test_image_embedding_and_decoder_are_what_the_page_needs(office: Office) -> None:
    client = office.client()
    task = claim(client)
    image = client.get(f"/api/images/{task['image_id']}")
    assert image.content[:2] == b"\xff\xd8"
    channels, height, width = task["embedding_shape"]
    embedding = client.get(f"/api/embeddings/{task['image_id']}")
    assert len(embedding.content) == 2 * channels * height * width
    assert np.isfinite(np.frombuffer(embedding.content, "<f2")).all()
    decoder = client.get("/api/decoder")
    assert len(decoder.content) > 100_000
    again = client.get("/api/decoder", headers={"If-None-Match": decoder.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    ask = {
        "image_id": task["image_id"],
        "point_coords": [[40.0, 30.0], [0.0, 0.0]],
        "point_labels": [1, -1],
    }
    answer = client.post("/api/decode", json=ask).json()
    side = task["image_size"] // 4
    logits = np.frombuffer(base64.b64decode(answer["low_res_masks"]), "<f2").reshape(4, side, side)
    assert np.isfinite(logits).all()
    assert len(answer["predicted_iou"]) == 4
    shown = base64.b64encode(logits[0].tobytes()).decode()
    again = client.post("/api/decode", json=ask | {"mask_input": shown}).json()
    assert again["low_res_masks"] != answer["low_res_masks"]
