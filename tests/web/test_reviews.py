"""A second person looks at what was handed in, and audits what the model drew."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from engine import cli
from engine.audit import audit_report, check_auditable
from engine.errors import ConfigError
from engine.manifest import load_manifest
from engine.review import is_reviewed
from engine.status import run_status, with_tasks
from engine.task_results import task_results
from engine.task_tables import TaskKind
from offices import (
    HEADER,
    PEOPLE,
    Office,
    claim,
    drawn,
    leave,
    open_office,
    rle,
    save,
    settle,
)
from offices import submit as hand_in
from stages.records import ImageStatus
from tiny_runs import AUTOMATIC, MANUAL, TinyRun, sa_engine
from web.accounts import Accounts, Role
from web.app import create_app
from web.desk import Desk
from web.serve import accounts_of

REVIEWED = MANUAL | PEOPLE | {"retrain": False, "review_share": 1.0}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """One image of stage one, which will be reviewed."""
    opened = open_office(TinyRun(tmp_path, [REVIEWED], 1))
    yield opened
    leave(opened)


def annotated(client: TestClient, masks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    task = claim(client)
    for mask_id, mask in masks.items():
        assert save(client, task, mask, mask_id) == 204
    assert hand_in(client, task) == 204
    return task


def test_what_a_reviewer_corrects_takes_the_place_of_what_was_handed_in(office: Office) -> None:
    ada, rae = office.client("Ada"), office.client("Rae", Role.REVIEWER)
    left, moved, wrong, missing = (f"{number:032x}" for number in range(4))
    half = rle(5, 5, 30, 30), rle(5, 5, 30, 17)
    annotated(
        ada,
        {
            left: drawn(),
            moved: drawn(segmentation=half[0]),
            wrong: drawn(segmentation=rle(40, 40, 50, 50)),
        },
    )
    assert with_tasks(office.run.store, run_status(office.run.store))[0].reviews.left == 1
    assert office.thread.is_alive()  # nothing is sealed before the review
    task = claim(rae, "review")
    assert (task["kind"], task["note"]) == ("review", "")
    assert [mask["mask_id"] for mask in task["masks"]] == [left, moved, wrong]
    assert save(rae, task, drawn(segmentation=half[1]), moved) == 204
    url = f"/api/tasks/{task['task_id']}/masks/{wrong}"
    assert rae.request("DELETE", url, json={"lease": task["lease"]}).status_code == 204
    assert save(rae, task, drawn(segmentation=rle(50, 50, 60, 60)), missing) == 204
    assert [settle(rae, task), settle(rae, task, "reject", "late")] == [204, 204]
    office.finish()
    (record,) = office.run.records(0)
    found = [(m.annotator, m.segmentation.model_dump(mode="json")) for m in record.masks]
    assert found == [("Ada", rle()), ("Rae", half[1]), ("Rae", rle(50, 50, 60, 60))]
    review = task_results(office.desk.queue, 0, [record.image_id])[record.image_id].review
    assert review is not None
    assert review.ious == pytest.approx((1.0, 12 / 25, 0.0))
    assert (review.deleted, review.added, review.seconds) == (1, 1, 4.0)
    office.run.assert_whole()


def test_status_says_what_waits_for_review_and_whether_anybody_may(
    office: Office, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotated(office.client("Ada"), {uuid.uuid4().hex: drawn()})
    status = ("status", str(office.run.out))
    assert sa_engine(monkeypatch, *status) == 0
    said = capsys.readouterr()
    assert "working, 1 wait for review" in said.out
    assert "nobody may review: sa-engine annotators add" in said.err
    rae = office.client("Rae", Role.REVIEWER)
    assert settle(rae, claim(rae, "review")) == 204
    assert sa_engine(monkeypatch, *status) == 0
    said = capsys.readouterr()
    assert "round 0 review of Ada: 1 good, 0 to be redone, 0 rejected; mean IoU 1.000" in said.out
    assert "nobody may review" not in said.err


def test_an_image_to_be_redone_comes_back_with_its_masks_and_the_note(office: Office) -> None:
    ada, ben, rae = (
        office.client("Ada"),
        office.client("Ben"),
        office.client("Rae", Role.REVIEWER),
    )
    first = uuid.uuid4().hex
    annotated(ada, {first: drawn()})
    task = claim(rae, "review")
    assert save(rae, task, drawn(segmentation=rle(1, 1, 9, 9)), first) == 204
    assert settle(rae, task, "redo") == 422  # it says what to do
    assert settle(rae, task, "redo", "  the cup is missing ") == 204
    again = claim(ben)
    assert again["note"] == "the cup is missing"
    assert [mask["mask"]["segmentation"] for mask in again["masks"]] == [rle()]
    assert rae.post("/api/tasks/claim", json={"kind": "review"}).status_code == 204
    assert save(ben, again, drawn(segmentation=rle(40, 40, 50, 50))) == 204
    assert hand_in(ben, again) == 204
    second = claim(rae, "review")
    assert [mask["annotator"] for mask in second["masks"]] == ["Ada", "Ben"]
    assert settle(rae, task, "reject", "of what is no more") == 409
    assert settle(rae, second) == 204
    office.finish()
    (record,) = office.run.records(0)
    assert [mask.annotator for mask in record.masks] == ["Ada", "Ben"]


def test_a_rejected_image_keeps_no_mask_and_says_why(office: Office) -> None:
    annotated(office.client("Ada"), {uuid.uuid4().hex: drawn()})
    rae = office.client("Rae", Role.MANAGER)
    task = claim(rae, "review")
    assert settle(rae, task, "reject") == 422
    assert settle(rae, task, "reject", "a drawing") == 204
    office.finish()
    (record,) = office.run.records(0)
    assert (record.status, record.error) == (ImageStatus.REJECTED, "a drawing")
    assert (record.masks, record.drops) == ((), {"rejected": 1})
    office.run.assert_whole()


def test_skipping_after_a_redo_needs_no_second_review(office: Office) -> None:
    ada, rae = office.client("Ada"), office.client("Rae", Role.REVIEWER)
    annotated(ada, {uuid.uuid4().hex: drawn()})
    assert settle(rae, claim(rae, "review"), "redo", "nothing is here") == 204
    task = claim(ada)
    skip = {"lease": task["lease"], "seconds": 1.0, "reason": "indeed"}
    assert ada.post(f"/api/tasks/{task['task_id']}/skip", json=skip).status_code == 204
    office.finish()
    (record,) = office.run.records(0)
    assert (record.status, record.error) == (ImageStatus.SKIPPED, "indeed")


def test_nobody_reviews_what_they_had_a_hand_in(office: Office) -> None:
    ada, ben = office.client("Ada", Role.REVIEWER), office.client("Ben", Role.REVIEWER)
    task = claim(ada)
    assert save(ada, task, drawn()) == 204
    release = {"lease": task["lease"]}
    assert ada.post(f"/api/tasks/{task['task_id']}/release", json=release).is_success
    annotated(ben, {})
    for reviewer in (ada, ben):
        assert reviewer.post("/api/tasks/claim", json={"kind": "review"}).status_code == 204
    assert claim(office.client("Cas", Role.REVIEWER), "review")["masks"]


def test_roles_and_kinds_are_kept_apart(office: Office) -> None:
    ada, rae = office.client("Ada"), office.client("Rae", Role.REVIEWER)
    for kind in ("review", "audit"):
        answer = ada.post("/api/tasks/claim", json={"kind": kind})
        assert answer.status_code == 403
        assert "reviewers" in answer.json()["detail"]
    assert rae.post("/api/tasks/claim", json={"kind": "everything"}).status_code == 422
    task = claim(ada)
    assert settle(ada, task) == 403
    assert save(ada, task, drawn()) == 204
    assert hand_in(ada, task) == 204
    review = claim(rae, "review")
    assert settle(ada, review) == 403
    other = office.client("Oda", Role.REVIEWER)
    assert settle(other, review) == 409
    assert settle(rae, review | {"lease": task["lease"]}) == 409
    assert hand_in(rae, review) == 422
    skip = {"lease": review["lease"], "seconds": 1.0, "reason": "no"}
    assert rae.post(f"/api/tasks/{review['task_id']}/skip", json=skip).status_code == 422
    for body in (
        {"verdict": "excellent"},
        {"verdict": "reject", "note": "x" * 5000},
        {"verdict": "redo", "note": "what PostgreSQL does not keep: \0"},
        {"verdict": "good", "seconds": -1},
        {"verdict": "good", "seconds": "NaN"},
        {"verdict": "good", "owner": "Ada"},
        {},
    ):
        body = {"lease": review["lease"], "seconds": 1.0} | body
        url = f"/api/tasks/{review['task_id']}/review"
        assert rae.post(url, json=body).status_code == 422, body
    for path in ("999", "0", "-1", "x", "..%2f1"):
        answer = rae.post(f"/api/tasks/{path}/review", json={"lease": "x", "seconds": 1})
        assert answer.status_code in (404, 405, 409, 422)
    assert office.desk.queue.counts(0, TaskKind.REVIEW).leased == 1


def test_reviewing_by_annotators_is_wrong_for_a_task_to_annotate(office: Office) -> None:
    rae = office.client("Rae", Role.REVIEWER)
    assert settle(rae, claim(rae)) == 422


def test_a_share_is_reviewed_and_always_the_same_one(tmp_path: Path) -> None:
    config = TinyRun(tmp_path, [REVIEWED | {"review_share": 0.3}], 1).config
    chosen = [image for image in range(2000) if is_reviewed(config, 0, image)]
    assert 500 < len(chosen) < 700
    again = TinyRun(tmp_path, [REVIEWED | {"review_share": 0.3}], 1).config
    assert chosen == [image for image in range(2000) if is_reviewed(again, 0, image)]
    more = TinyRun(tmp_path, [REVIEWED | {"review_share": 0.5}], 1).config
    assert all(is_reviewed(more, 0, image) for image in chosen)


@pytest.mark.parametrize("mine", [AUTOMATIC, MANUAL])
def test_a_share_without_people_is_refused(tmp_path: Path, mine: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="round 0 has a review_share, but no people"):
        _ = TinyRun(tmp_path, [mine | {"review_share": 0.1}], 1).config


def test_an_audit_corrects_automatic_masks_and_leaves_the_sealed_ones_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, [AUTOMATIC], 4)
    run.run()
    sealed = load_manifest(run.store, run.config.round_folder(0))
    command = ("audit", str(run.out), "--round", "0", "--images", "3", "--seed", "7")
    for _ in range(2):  # the same three images, once
        assert sa_engine(monkeypatch, *command) == 0
        assert "images    0 of 3 audited" in capsys.readouterr().out
    desk, accounts = Desk(run.store), accounts_of(run.store)
    client = signed_in(desk, accounts, "Rae", Role.REVIEWER)
    assert client.get("/api/me").json()["kinds"] == ["audit"]
    first = claim(client, "audit")
    before = desk.rounds.known.automatic_masks(first["image_id"])
    assert [mask["mask_id"] for mask in first["masks"]] == list(before)
    assert [mask["base"] for mask in first["masks"]] == [
        mask["mask"]["segmentation"] for mask in first["masks"]
    ]
    corrected = first["masks"][0]["mask_id"]
    changed = drawn(interactions=[], segmentation=rle(0, 0, 2, 2))
    assert save(client, first, changed, corrected) == 204
    assert settle(client, first, "redo", "nobody is there") == 422
    assert settle(client, first) == 204
    second = claim(client, "audit")
    for mask in second["masks"]:
        url = f"/api/tasks/{second['task_id']}/masks/{mask['mask_id']}"
        assert client.request("DELETE", url, json={"lease": second["lease"]}).status_code == 204
    assert settle(client, second) == 204
    assert settle(client, claim(client, "audit"), "reject", "cannot be judged") == 204
    assert client.post("/api/tasks/claim", json={"kind": "audit"}).status_code == 204
    found = audit_report(desk.queue, 0).agreement
    assert (found.good, found.reject) == (2, 1)
    assert found.compared == len(before) + len(second["masks"])
    assert found.deleted == len(second["masks"])
    assert found.above_75 == found.above_90 == len(before) - 1
    assert sa_engine(monkeypatch, *command) == 0
    printed = capsys.readouterr().out
    assert "images    3 of 3 audited" in printed
    assert f"above .90 {found.share_above_90:.1%} (the paper: 94%)" in printed
    assert load_manifest(run.store, run.config.round_folder(0)) == sealed
    assert cli.verify(str(run.out)) == 0


def test_only_sealed_automatic_rounds_are_audited(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, [MANUAL | {"images": 1, "retrain": False}, AUTOMATIC], 2)
    run.run()
    check_auditable(run.store, run.config, 1)
    for wrong in (0, 2, -1):
        with pytest.raises(ConfigError):
            check_auditable(run.store, run.config, wrong)


def signed_in(desk: Desk, accounts: Accounts, name: str, role: Role) -> TestClient:
    client = TestClient(create_app(desk, accounts), headers=HEADER)
    token = accounts.add(name, role)
    assert client.post("/api/login", json={"token": token}).status_code == 204
    return client
