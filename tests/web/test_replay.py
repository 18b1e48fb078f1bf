"""The log of a mask made through the server leads to the same mask again, asked of the model."""

import base64
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor

from engine.context import load_run_checkpoint
from model.mask_decoder import MaskPrediction, wanted_outputs
from model.onnx_decoder import INPUTS
from model.prompt_encoder import Prompts
from model.sam import Sam, SamConfig
from offices import SIDE, Office, claim, save, submit
from stages.assisted_manual import MaskSession, replay
from stages.predictor import Predictor
from stages.prompts import mask_iou
from stages.rle import decode_rle, encode_rle

Decode = Callable[[np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]
"""Points (N, 2), labels (N,) and logits (s, s) to logits (4, s, s) and predicted IoU (4,)."""


@dataclass
class PageModel:
    """As a page has the model: a decoder that answers prompts, and no more."""

    config: SamConfig
    answer: Decode

    def decode(
        self, _: Tensor, prompts: Prompts, *, multimask_output: bool | None
    ) -> MaskPrediction:
        assert prompts.point_coords is not None
        assert prompts.point_labels is not None
        box = prompts.boxes
        more = torch.zeros(1, 2) if box is None else box.reshape(2, 2)
        coords = torch.cat([prompts.point_coords[0], more]).numpy()
        labels = torch.cat([prompts.point_labels[0], torch.tensor([-1] if box is None else [2, 3])])
        shown = None if prompts.mask_input is None else prompts.mask_input[0, 0].numpy()
        masks, iou = self.answer(coords, labels.numpy(), shown)
        chosen = wanted_outputs(multimask_output)
        return MaskPrediction(
            low_res_masks=torch.tensor(masks[None, chosen]),
            predicted_iou=torch.tensor(iou[None, chosen]),
            iou_token=torch.zeros(1, self.config.embed_dim),
        )


def servers_decoder(client: TestClient, image_id: int, side: int) -> Decode:
    def decode(
        coords: np.ndarray, labels: np.ndarray, shown: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        encoded = None if shown is None else shown.astype("<f2").tobytes()
        question = {
            "image_id": image_id,
            "point_coords": coords.tolist(),
            "point_labels": labels.tolist(),
            "mask_input": encoded and base64.b64encode(encoded).decode(),
        }
        answer = client.post("/api/decode", json=question).json()
        logits = np.frombuffer(base64.b64decode(answer["low_res_masks"]), "<f2")
        return (
            logits.reshape(4, side, side).astype(np.float32),
            np.asarray(answer["predicted_iou"], np.float32),
        )

    return decode


def pages_decoder(client: TestClient, image_id: int, shape: list[int], side: int) -> Decode:
    """What onnxruntime does in the page, on the same two files."""
    session = onnxruntime.InferenceSession(
        client.get("/api/decoder").content, providers=["CPUExecutionProvider"]
    )
    embedding = np.frombuffer(client.get(f"/api/embeddings/{image_id}").content, "<f2")

    def decode(
        coords: np.ndarray, labels: np.ndarray, shown: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        mask_input = np.zeros((side, side), np.float32) if shown is None else shown
        inputs = (
            embedding.reshape(1, *shape).astype(np.float32),
            coords[None].astype(np.float32),
            labels[None],
            mask_input[None, None],
            np.asarray([shown is not None], np.float32),
        )
        masks, iou = session.run(None, dict(zip(INPUTS, inputs, strict=True)))
        return masks[0], iou[0]

    return decode


@pytest.mark.parametrize("where", ["in the page", "at the server"])
def test_a_mask_made_through_the_server_is_made_again_by_its_log(
    office: Office, where: str
) -> None:
    client = office.client()
    task = claim(client)
    checkpoint = load_run_checkpoint(
        office.run.store, f"checkpoints/{task['checkpoint'].partition('@')[0]}"
    )
    assert checkpoint.label == task["checkpoint"]
    side, shape, image_id = (
        checkpoint.config.low_res_size,
        task["embedding_shape"],
        task["image_id"],
    )
    decode = (
        pages_decoder(client, image_id, shape, side)
        if where == "in the page"
        else servers_decoder(client, image_id, side)
    )
    model: Sam = PageModel(checkpoint.config, decode)  # type: ignore[assignment]
    session = MaskSession(Predictor(model, (SIDE, SIDE), torch.zeros(1, *shape)))
    session.click((20.0, 24.0), 1, seconds=1.5, choose=lambda _: 1)
    session.click((50.0, 40.0), 0, seconds=1.5)
    session.drag_box((8.0, 6.0, 44.0, 50.0), seconds=3.0)
    stroke = np.zeros((SIDE, SIDE), dtype=bool)
    stroke[10:20, 10:30] = True
    session.brush(stroke, 1, seconds=2.0)
    session.brush(np.roll(stroke, 25, axis=0), 0, seconds=2.0)
    session.click((12.0, 30.0), 1, seconds=1.5)
    drawn = {
        "segmentation": encode_rle(session.mask).model_dump(mode="json"),
        "predicted_iou": 0.8,
        "stability_score": 0.9,
        "seconds": session.seconds,
        "interactions": [action.model_dump(mode="json") for action in session.interactions],
    }
    assert save(client, task, drawn, uuid.uuid4().hex) == 204
    assert submit(client, task) == 204
    assert submit(client, claim(client)) == 204
    office.finish()
    (mask,) = next(r for r in office.run.records(0) if r.image_id == image_id).masks
    embedding = office.desk.images.embedding(office.desk.rounds.known, image_id).astype(np.float32)
    predictor = Predictor(checkpoint.sam, (SIDE, SIDE), torch.from_numpy(embedding)[None])
    again = replay(lambda _: predictor, mask.interactions)
    stored = decode_rle(mask.segmentation)
    assert stored.any()
    # Logits go to the server and come back as fp16, which moves a pixel at the threshold.
    least = 1.0 if where == "in the page" else 0.99
    assert mask_iou(again, stored) >= least
