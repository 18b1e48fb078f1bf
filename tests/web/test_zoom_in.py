"""Second looks at small objects, as the page asks for them."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.context import WorkerContext, WorkerSpec, load_run_checkpoint
from model.prompt_encoder import Prompts
from model.transforms import ResizeLongestSide
from offices import PEOPLE, SIDE, Office, claim, leave, open_office
from stages.predictor import embed
from stages.zoom_in import View, carry
from tiny_runs import MANUAL, TinyRun


@pytest.fixture
def zooming(tmp_path: Path) -> Iterator[Office]:
    """Two images, whose small objects are looked at twice."""
    rounds = [MANUAL | PEOPLE | {"retrain": False}]
    opened = open_office(TinyRun(tmp_path, rounds, 2, changes={"zoom_in": True}))
    yield opened
    leave(opened)


def question(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "image_id": task["image_id"],
        "crop_xyxy": [10, 20, 31, 41],
        "point_coords": [[40.0, 30.0], [0.0, 0.0]],
        "point_labels": [1, -1],
    } | changes


def logits_of(encoded: str) -> Tensor:
    """(4, s, s)"""
    values = np.frombuffer(base64.b64decode(encoded), "<f2").astype(np.float32)
    side = int((values.size / 4) ** 0.5)
    return torch.from_numpy(values).reshape(4, side, side)


def test_a_crop_is_answered_as_an_image_of_its_own(zooming: Office) -> None:
    client, images = zooming.client(), zooming.desk.images
    task = claim(client)
    assert task["zoom_in"]
    side = task["image_size"] // 4
    shown = np.random.default_rng(0).normal(size=(side, side)).astype("<f2")
    asked = question(task, mask_input=base64.b64encode(shown.tobytes()).decode())
    answer = client.post("/api/zoom-in", json=asked).json()
    near = logits_of(answer["low_res_masks"])

    store = zooming.run.store
    whole = View((0, 0), ResizeLongestSide((SIDE, SIDE), task["image_size"]))
    crop = View((10, 20), ResizeLongestSide((21, 21), task["image_size"]))
    sam = load_run_checkpoint(store, f"checkpoints/{task['checkpoint'].partition('@')[0]}").sam
    context = WorkerContext(WorkerSpec(store.uri, ""))
    pixels = context.read_image(images.row(task["image_id"])).pixels
    prompts = Prompts(
        point_coords=torch.tensor([[[40.0, 30.0]]]),
        point_labels=torch.tensor([[1]]),
        mask_input=carry(torch.from_numpy(shown.astype(np.float32))[None], whole, crop)[None],
    )
    with torch.inference_mode():
        embedding = embed(sam, crop.cut(pixels))
        expected = sam.decode(embedding, prompts, multimask_output=True).low_res_masks[0]
    tolerance = 0.01 * float(expected.abs().max())
    assert torch.allclose(near[1:], expected, atol=tolerance)
    assert torch.allclose(logits_of(answer["carried"]), carry(near, crop, whole), atol=0.05)


def test_further_clicks_look_at_the_same_crop_without_another_encoding(zooming: Office) -> None:
    client, images = zooming.client(), zooming.desk.images
    asked = question(claim(client))
    client.post("/api/zoom-in", json=asked)
    encoded = images._crop_embedding.cache_info().misses
    more = asked | {"point_coords": [[40.0, 30.0], [9.0, 9.0]], "point_labels": [1, 0]}
    assert client.post("/api/zoom-in", json=more).status_code == 200
    assert (encoded, images._crop_embedding.cache_info().misses) == (1, 1)


def test_a_crop_that_is_none_of_the_image_is_refused(zooming: Office) -> None:
    client = zooming.client()
    task = claim(client)
    for crop in ([9, 9, 9, 20], [-1, 0, 20, 20], [0, 0, 20, SIDE + 1], [9, 9, 3, 20]):
        refused = client.post("/api/zoom-in", json=question(task, crop_xyxy=crop))
        assert refused.status_code == 422
        assert f"within {SIDE} x {SIDE} pixels" in refused.json()["detail"]


def test_where_nobody_zooms_in_no_crop_is_encoded(office: Office) -> None:
    client = office.client()
    task = claim(client)
    assert not task["zoom_in"]
    assert client.post("/api/zoom-in", json=question(task)).status_code == 404
