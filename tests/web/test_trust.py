"""The annotation server over HTTP, as an attacker would use it, with a token or without."""

import json
import uuid
from typing import Any

import pytest
from fastapi.testclient import TestClient

import engine.drafts
from offices import (
    HEADER,
    SIDE,
    Office,
    claim,
    drawn,
    rle,
    save,
)
from web.accounts import Role
from web.app import MAX_BODY_BYTES, create_app
from web.masks import MAX_INTERACTIONS


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


def test_a_page_does_nothing_in_the_name_of_who_signed_in_after_it(office: Office) -> None:
    client = office.client("Jürgen")
    mine = {"X-SA-Engine-Account": "J%C3%BCrgen"}
    assert client.post("/api/tasks/claim", json={}, headers=mine).status_code == 200
    client.post("/api/login", json={"token": office.accounts.add("Eve", Role.ANNOTATOR)})
    refused = client.post("/api/tasks/claim", json={}, headers=mine)
    assert refused.status_code == 401
    assert refused.json()["detail"] == "Eve has signed in with this browser; sign in again"
    assert client.get("/api/me").json()["name"] == "Eve"


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
    stored = [draft.content for draft in office.desk.queue.drafts(task["task_id"])]
    monkeypatch.setattr(engine.drafts, "MAX_CHARACTERS", sum(map(len, stored)))
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
