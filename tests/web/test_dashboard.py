"""What a manager sees of a run, and nobody else."""

import io
import uuid
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from engine import layout
from engine.evaluation import DetectorRecall
from offices import HEADER, PEOPLE, Office, claim, drawn, leave, open_office, save, settle, submit
from tiny_runs import AUTOMATIC, MANUAL, SIDE, TinyRun
from web.accounts import Role
from web.app import create_app


def shown(office: Office, manager: TestClient) -> dict[str, Any]:
    """The figures as they are now."""
    manager.app.state.figures._shown = None  # type: ignore[attr-defined]
    answer = manager.get("/api/dashboard")
    assert answer.status_code == 200, answer.text
    figures: dict[str, Any] = answer.json()
    return figures


def test_only_managers_see_the_dashboard(office: Office) -> None:
    for role in (Role.ANNOTATOR, Role.REVIEWER):
        client = office.client(role.value, role)
        for path in ("/api/dashboard", "/api/pictures/0/0"):
            answer = client.get(path)
            assert answer.status_code == 403
            assert "managers" in answer.json()["detail"]
    assert office.client("Max", Role.MANAGER).get("/api/dashboard").status_code == 200


def test_the_dashboard_follows_a_round_through_work_and_review(tmp_path: Path) -> None:
    rounds = [
        MANUAL | PEOPLE | {"review_share": 1.0, "retrain": False, "images": 2},
        AUTOMATIC | {"images": 1},
    ]
    office = open_office(TinyRun(tmp_path, rounds, 3, held_out=1))
    try:
        max_ = office.client("Max", Role.MANAGER)
        before = shown(office, max_)
        assert before["run"] == "tiny"
        assert before["start"]["evaluation"]["miou_1_click"] >= 0
        first, later = before["rounds"]
        assert (first["state"], first["images"], first["tasks"]["open"]) == ("working", 2, 2)
        assert (later["state"], later["images"], later["annotators"]) == ("waiting", 0, [])
        assert first["detector"] is None
        recall = DetectorRecall(num_objects=8, num_found=6, recall=0.75)
        folder = office.run.config.round_folder(0)
        office.run.store.publish(layout.recall_path(folder), recall.model_dump_json().encode())
        ada = office.client("Ada")
        for _ in range(2):
            task = claim(ada)
            assert save(ada, task, drawn(), uuid.uuid4().hex) == 204
            assert submit(ada, task) == 204
        mine = shown(office, max_)["rounds"][0]
        assert mine["detector"]["recall"] == 0.75
        assert (mine["tasks"]["submitted"], mine["reviews"]["open"]) == (2, 2)
        (ada_figures,) = mine["annotators"]
        assert ada_figures["name"] == "Ada"
        assert ada_figures["effort"]["seconds_per_mask"] == 9.0
        assert ada_figures["effort"]["clicks_per_mask"] == 1.0
        assert len(mine["over_time"]) == 2
        assert mine["pictures"] == ada_figures["pictures"]
        assert set(mine["pictures"]) == set(office.run.planned(0))
        for verdict in ("good", "redo"):
            assert settle(max_, claim(max_, "review"), verdict, "look again") == 204
        mine = shown(office, max_)["rounds"][0]
        assert (mine["agreement"]["good"], mine["agreement"]["mean_iou"]) == (1, 1.0)
        assert mine["annotators"][0]["agreement"]["redo"] == 1
        assert (mine["tasks"]["open"], mine["effort"]["images"]) == (1, 1)
        assert submit(ada, claim(ada)) == 204
        assert settle(max_, claim(max_, "review")) == 204
        office.finish()
        first, later = shown(office, max_)["rounds"]
        assert (first["state"], later["state"]) == ("done", "done")
        assert first["outcome"]["evaluation"] == before["start"]["evaluation"]
        assert len(later["pictures"]) == 1
        picture = max_.get(f"/api/pictures/1/{later['pictures'][0]}")
        assert picture.status_code == 200
    finally:
        leave(office)


def test_pictures_are_small_and_of_this_run_s_masks_alone(office: Office) -> None:
    max_ = office.client("Max", Role.MANAGER)
    task = claim(max_)
    url = f"/api/pictures/0/{task['image_id']}"
    assert max_.get(url).status_code == 404  # nothing was handed in
    assert save(max_, task, drawn()) == 204
    assert submit(max_, task) == 204
    answer = max_.get(url)
    assert answer.headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (SIDE, SIDE)
    assert max_.get(url).content == answer.content
    for path in ("0/99", "7/0", "-1/0", "0/-1", "0/x", "0/99999999999999999999", "..%2f0/1"):
        assert max_.get(f"/api/pictures/{path}").status_code in (404, 422), path
    stranger = TestClient(create_app(office.desk, office.accounts), headers=HEADER)
    assert stranger.get(url).status_code == 401
