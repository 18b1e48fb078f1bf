"""Superpixels, as the page asks for them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from engine.context import WorkerContext, WorkerSpec
from engine.corpus import CorpusRow
from engine.errors import UnreadableImageError
from model.click_scorer import shipped_click_scorer
from offices import HEADER, PEOPLE, SIDE, Office, claim, leave, open_office
from stages.predictor import Pixels
from stages.superpixels import Superpixels
from tiny_runs import MANUAL, TinyRun
from web.superpixels import Kept


@pytest.fixture
def snapping(tmp_path: Path) -> Iterator[Office]:
    """Two images, whose masks are made of superpixels."""
    rounds = [MANUAL | PEOPLE | {"retrain": False}]
    opened = open_office(TinyRun(tmp_path, rounds, 2, changes={"snap": True}))
    yield opened
    leave(opened)


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pixels_of(office: Office, task: dict[str, Any]) -> Pixels:
    context = WorkerContext(WorkerSpec(office.run.store.uri, ""))
    return context.read_image(office.desk.images.row(task["image_id"])).pixels


@pytest.mark.parametrize("crop", [None, (10, 20, 31, 41), (0, 0, SIDE, 1)])
def test_the_page_has_the_engines_own(
    snapping: Office, crop: tuple[int, int, int, int] | None
) -> None:
    client = snapping.client()
    task = claim(client)
    assert task["snap"]
    url = f"/api/superpixels/{task['image_id']}"
    answer = client.get(url, params=None if crop is None else {"crop_xyxy": list(crop)})
    assert answer.status_code == 200
    sent = np.frombuffer(answer.content, "<u4")
    height, width, num_atoms, num_segmentations, num_unions, num_borders, _ = sent[:7].tolist()
    num_integers = height * width + num_segmentations * num_atoms + 2 * num_unions
    rest, reals = sent[7 : 7 + num_integers], sent[7 + num_integers :].view("<f4")
    pixels = pixels_of(snapping, task)
    if crop is not None:
        pixels = pixels[crop[1] : crop[3], crop[0] : crop[2]]
    expected = Superpixels(np.ascontiguousarray(pixels))
    assert (height, width) == expected.atoms.shape
    assert (num_atoms, num_segmentations) == (len(expected.areas), len(expected.segmentations))
    assert np.array_equal(rest[: height * width], expected.atoms.ravel())
    members = np.reshape(rest[height * width : -2 * num_unions], (num_segmentations, num_atoms))
    for mine, one in zip(members, expected.segmentations, strict=True):
        assert np.array_equal(mine, one.members)
    unions = np.reshape(rest[-2 * num_unions :], (num_unions, 2))
    assert np.array_equal(unions, expected.unions.runs)
    borders, depths, weights = np.split(reals, [num_borders, num_borders + num_unions])
    np.testing.assert_allclose(borders, expected.unions.borders, rtol=1e-6)
    np.testing.assert_allclose(depths, expected.unions.depths, rtol=1e-6)
    mine = [
        parameter.numpy(force=True).ravel() for parameter in shipped_click_scorer().parameters()
    ]
    assert np.array_equal(weights, np.concatenate(mine))


def test_an_image_is_cut_up_once_however_many_ask_at_a_time(
    snapping: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, made = snapping.client(), []
    begun = threading.Event()

    def slow(pixels: Pixels) -> Superpixels:
        made.append(pixels.shape)
        begun.wait(10)
        return Superpixels(pixels)

    monkeypatch.setattr("web.images.Superpixels", slow)
    url = f"/api/superpixels/{claim(client)['image_id']}"
    with ThreadPoolExecutor(5) as people:
        asked = [people.submit(client.get, url) for _ in range(5)]
        until(lambda: made)
        begun.set()
        answers = {answer.result().content for answer in asked}
    answers.add(client.get(url).content)
    assert (len(answers), made) == (1, [(SIDE, SIDE, 3)])


def test_a_crop_does_not_wait_for_images(snapping: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    client, begun = snapping.client(), threading.Event()

    def slow_if_whole(pixels: Pixels) -> Superpixels:
        if pixels.shape[:2] == (SIDE, SIDE):
            begun.wait(10)
        return Superpixels(pixels)

    monkeypatch.setattr("web.images.Superpixels", slow_if_whole)
    url = f"/api/superpixels/{claim(client)['image_id']}"
    with ThreadPoolExecutor(1) as people:
        whole = people.submit(client.get, url)
        assert client.get(url, params={"crop_xyxy": [3, 3, 23, 23]}).status_code == 200
        assert not whole.done()
        begun.set()
        assert whole.result().status_code == 200


def test_what_is_made_is_kept_and_what_failed_is_made_again() -> None:
    made: list[int] = []

    def make(number: int) -> bytes:
        made.append(number)
        if made.count(number) == 1 and number == 0:
            raise OSError("away")
        return bytes([number])

    with ThreadPoolExecutor(1) as pool:
        kept = Kept(make, 2, pool)
        with pytest.raises(OSError, match="away"):
            kept(0).result()
        assert [kept(number).result() for number in (0, 1, 0, 2, 0, 1)] == [
            bytes([number]) for number in (0, 1, 0, 2, 0, 1)
        ]
    assert made == [0, 0, 1, 2, 1]  # 1 was asked for longest ago when 2 came


def test_a_page_is_told_that_an_image_cannot_be_read(
    snapping: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = snapping.client()

    def gone(self: WorkerContext, row: CorpusRow) -> None:
        raise UnreadableImageError("missing", f"{row.uri} is gone")

    monkeypatch.setattr(WorkerContext, "read_image", gone)
    refused = client.get(f"/api/superpixels/{claim(client)['image_id']}")
    assert (refused.status_code, "is gone" in refused.json()["detail"]) == (410, True)


def test_a_crop_that_is_none_of_the_image_is_refused(snapping: Office) -> None:
    client = snapping.client()
    url = f"/api/superpixels/{claim(client)['image_id']}"
    for crop in ([9, 9, 9, 20], [-1, 0, 20, 20], [0, 0, 20, SIDE + 1], [9, 9, 3, 20]):
        refused = client.get(url, params={"crop_xyxy": crop})
        assert refused.status_code == 422
        assert f"within {SIDE} x {SIDE} pixels" in refused.json()["detail"]
    for wrong in ([1, 2, 3], [1, 2, 3, 4, 5], ["a", "b", "c", "d"]):
        assert client.get(url, params={"crop_xyxy": wrong}).status_code == 422


def test_only_who_has_signed_in_gets_any_and_only_of_images_of_the_round(snapping: Office) -> None:
    client = snapping.client()
    url = f"/api/superpixels/{claim(client)['image_id']}"
    assert TestClient(snapping.app, headers=HEADER).get(url).status_code == 401
    assert client.get("/api/superpixels/7").status_code == 404


def test_where_masks_are_not_made_of_superpixels_there_are_none(office: Office) -> None:
    client = office.client()
    task = claim(client)
    assert not task["snap"]
    refused = client.get(f"/api/superpixels/{task['image_id']}")
    assert refused.status_code == 404
    assert "snap is off" in refused.json()["detail"]
