"""The annotation server over HTTP, as the page uses it and as an attacker would."""

import base64
import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import engine.drafts
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
from stages.records import ImageStatus, Source
from tiny_runs import MANUAL, TinyRun
from web.accounts import Role
from web.app import MAX_BODY_BYTES, create_app
from web.masks import MAX_INTERACTIONS


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


def test_nothing_but_the_sign_in_answers_without_a_session(office: Office) -> None:
    app = create_app(office.desk, office.accounts)
    stranger = TestClient(app, headers=HEADER)
    body: dict[str, Any] = {
        "lease": "x",
        "seconds": 1,
        "reason": "x",
        "flagged": True,
        "mask": drawn(),
    }
    routes = app.openapi()["paths"]
    assert {"/api/login", "/api/tasks/claim", "/api/decode"} <= routes.keys()
    for path in routes.keys() - {"/api/login", "/api/logout"}:
        url = path.format(task_id=1, image_id=0, mask_id="0" * 32, prefilled_id=0, round_index=0)
        for method in routes[path]:
            answer = stranger.request(method, url, json=None if method == "get" else body)
            assert answer.status_code == 401, f"{method} {url}: {answer.status_code}"
    assert stranger.post("/api/login", json={"token": "guess"}).status_code == 401


def test_sessions_end_with_the_sign_out_and_with_a_new_token(office: Office) -> None:
    client = office.client("Ada")
    assert client.get("/api/me").json()["role"] == "annotator"
    office.accounts.add("Ada", Role.MANAGER)
    assert client.get("/api/me").status_code == 401
    client = office.client("Ada", Role.MANAGER)
    assert client.get("/api/me").json()["role"] == "manager"
    session = client.cookies["session"]
    assert client.post("/api/logout").status_code == 204
    client.cookies.set("session", session)
    assert client.get("/api/me").status_code == 401


def test_cookies_and_headers_keep_other_sites_out(office: Office) -> None:
    token = office.accounts.add("Eve", Role.ANNOTATOR)
    client = TestClient(create_app(office.desk, office.accounts))
    assert client.post("/api/login", json={"token": token}).status_code == 403  # no header
    answer = client.post("/api/login", json={"token": token}, headers=HEADER)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert token.lower() not in cookie
    assert client.post("/api/tasks/claim").status_code == 403
    policy = client.get("/api/me").headers["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert "frame-ancestors 'none'" in policy


JSON = {"Content-Type": "application/json"}
CLICK = drawn()["interactions"][0]


def logged(**changes: Any) -> dict[str, Any]:
    """A mask whose log has one action that is not as it should be."""
    return drawn(interactions=[CLICK | changes])


def wrapped_around() -> str:
    """Two million runs, none negative, that fill the frame as far as 64 bits can tell."""
    number = 2**21
    run, rest = divmod(2**64 + SIDE * SIDE, number)
    return compressed(run + rest) + 2 * compressed(run) + "0" * (number - 3)


def compressed(number: int) -> str:
    characters = ""
    while True:
        code, number = number & 31, number >> 5
        more = number != (-1 if code & 16 else 0)
        characters += chr(48 + code + 32 * more)
        if not more:
            return characters


BAD_MASKS = {
    "another frame": drawn(segmentation={"size": [8, 8], "counts": "o1"}),
    "no RLE": drawn(segmentation={"size": [SIDE, SIDE], "counts": "~~~"}),
    "not ASCII": drawn(segmentation={"size": [SIDE, SIDE], "counts": "é"}),
    "too short": drawn(segmentation={"size": [SIDE, SIDE], "counts": "5"}),
    "overflowing": drawn(segmentation={"size": [SIDE, SIDE], "counts": "ooooooooooo0"}),
    "empty counts": drawn(segmentation={"size": [SIDE, SIDE], "counts": ""}),
    "beyond 64 bits": drawn(segmentation={"size": [SIDE, SIDE], "counts": wrapped_around()}),
    "no pixel": drawn(segmentation=rle(0, 0, 0, 0)),
    "a bad answer": logged(answer=rle() | {"counts": "z"}),
    "a bad stroke": logged(
        kind="brush", coords=[1, 1, 2, 2], output=None, predicted_iou=None, stroke={"counts": "z"}
    ),
    "a point in three dimensions": logged(coords=[1, 2, 3]),
    "a box of two numbers": logged(kind="box"),
    "a point that is no number": logged(coords=[float("nan"), 2]),
    "a point elsewhere": logged(coords=[1, SIDE + 1]),
    "a click that neither adds nor removes": logged(label=10**30),
    "an output that no shard holds": logged(output=10**12),
    "a click without an answer": logged(output=None),
    "a brush without a stroke": logged(kind="brush", coords=[1, 1, 2, 2]),
    "endless clicks": drawn(interactions=[CLICK] * (MAX_INTERACTIONS + 1)),
    "an action of minus a second": logged(seconds=-1),
    "an action's score that is no number": logged(predicted_iou=float("nan")),
    "seconds that are no number": drawn(seconds=float("nan")),
    "minus a second": drawn(seconds=-1),
    "an endless time": drawn(seconds=float("inf")),
    "a score that is no number": drawn(predicted_iou=float("nan")),
    "a stability of two": drawn(stability_score=2),
    "an unknown field": drawn(role="manager"),
    "no number": drawn(seconds="long"),
}


def test_what_is_no_mask_is_refused_and_changes_nothing(office: Office) -> None:
    client = office.client()
    task = claim(client)
    for name, mask in BAD_MASKS.items():
        body = json.dumps({"lease": task["lease"], "mask": mask})  # NaN included
        url = f"/api/tasks/{task['task_id']}/masks/{uuid.uuid4().hex}"
        assert client.put(url, content=body, headers=JSON).status_code == 422, name
    assert office.desk.saved(task["task_id"]) == ()


def test_whatever_is_refused_is_logged_in_one_line_of_its_own(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    ada, url = office.client("Ada"), "/api/tasks/1/review"
    stranger = TestClient(office.app)
    refused = [
        (stranger.get("/api/me"), 401),
        (stranger.post("/api/login", json={}), 403),
        (ada.post("/api/decode", content=b" " * (MAX_BODY_BYTES + 1)), 413),
        (ada.post(url, json={"lease": "0" * 32, "seconds": 1, "verdict": "good"}), 403),
        (ada.get("/api/images/12345"), 404),
        (ada.get("/api/images/1%0aGET me: 200"), 422),
        (ada.delete("/api/me"), 405),
    ]
    assert [answer.status_code for answer, _ in refused] == [status for _, status in refused]
    lines = [record.getMessage() for record in caplog.records if record.name == "web.app"]
    assert len(lines) == len(refused)
    for line, (_, status) in zip(lines, refused, strict=True):
        assert f": {status}, " in line
        assert "\n" not in line
    claim(ada), claim(ada)
    caplog.clear()
    assert ada.post("/api/tasks/claim").status_code == 204  # nothing is left: no fault of hers
    assert not caplog.records


def test_nobody_keeps_more_of_an_image_than_there_is_room_for(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = office.client()
    task, kept = claim(client), [f"{number:032x}" for number in range(3)]
    monkeypatch.setattr(engine.drafts, "MAX_DRAFTS", 3)
    assert [save(client, task, drawn(), mask_id) for mask_id in kept] == [204] * 3
    assert save(client, task, drawn()) == 413
    assert save(client, task, drawn(), kept[0]) == 204  # in its own place
    monkeypatch.setattr(engine.drafts, "MAX_CHARACTERS", 3 * len(json.dumps(drawn())))
    long = drawn(interactions=[CLICK] * 20)
    assert save(client, task, long, kept[0]) == 413
    url = f"/api/tasks/{task['task_id']}/masks/{kept[1]}"
    assert client.request("DELETE", url, json={"lease": task["lease"]}).status_code == 204
    assert save(client, task, drawn()) == 204
    assert [mask.mask_id for mask in office.desk.saved(task["task_id"])][:2] == [kept[0], kept[2]]


def test_only_what_is_prefilled_can_be_flagged(office: Office) -> None:
    client = office.client()
    task = claim(client)
    for number in (0, 7, 2**62):
        url = f"/api/tasks/{task['task_id']}/flags/{number}"
        body = {"lease": task["lease"], "flagged": True}
        assert client.put(url, json=body).status_code == 422
    assert office.desk.queue.drafts(task["task_id"]) == []


def test_hostile_requests_get_an_answer_and_change_nothing(office: Office) -> None:
    ada, eve = office.client("Ada"), office.client("Eve")
    task = claim(ada)
    assert save(eve, task, drawn()) == 409  # knowing a lease is not enough
    assert save(ada, task | {"task_id": 999}, drawn()) == 409
    assert save(ada, task, drawn(), "../../etc/passwd") in (404, 405, 422)
    assert save(ada, task, drawn(), "A" * 32) == 422
    for path in ("..%2f..%2fconfig.yaml", "-1", "99999999999999999999", "1e3"):
        assert ada.get(f"/api/images/{path}").status_code in (404, 422)
    assert ada.get("/api/images/12345").status_code == 404
    large = b" " * (MAX_BODY_BYTES + 1)
    assert ada.post("/api/decode", content=large).status_code == 413
    chunks = ada.post("/api/decode", content=iter([b"{}"]))
    assert chunks.status_code == 411
    for decode in (
        {"image_id": task["image_id"], "point_coords": [], "point_labels": []},
        {"image_id": task["image_id"], "point_coords": [[1, 2]], "point_labels": [1, 1]},
        {"image_id": task["image_id"], "point_coords": [[1, 2]], "point_labels": [7]},
        {"image_id": task["image_id"], "point_coords": [[1e300, 2]], "point_labels": [1]},
        {
            "image_id": task["image_id"],
            "point_coords": [[1, 2]],
            "point_labels": [1],
            "mask_input": "!",
        },
    ):
        assert ada.post("/api/decode", json=decode).status_code == 422
    assert office.desk.saved(task["task_id"]) == ()
