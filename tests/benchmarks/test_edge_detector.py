"""The edge detector: what it is taught, what it never sees, and that its training is resumed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import edge_detector
from benchmarks.edge_detector import EdgeImage, border, edge_loss, main, read_edges, sample
from engine.scenes import write_scenes
from model.checkpoint import read_safetensors
from stages.rle import encode_rle

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_a_pixel_is_taught_the_share_of_annotators_who_have_it_at_a_border(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20), (90, 80, 70)).save(tmp_path / "images" / "one.png")
    left, right, top = (np.zeros((20, 30), dtype=bool) for _ in range(3))
    left[:, :10], right[:, 10:], top[:8, :10] = True, True, True
    votes = [(left, 4), (right, 5), (top, 1), (left & ~top, 1)]
    document = {
        "images": [{"id": 7, "file_name": "one.png", "width": 30, "height": 20}],
        "annotations": [
            {
                "image_id": 7,
                "segmentation": encode_rle(mask).model_dump(),
                "votes": number,
                "n_annotators": 5,
            }
            for mask, number in votes
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    (image,) = read_edges(tmp_path, held_out=False) + read_edges(tmp_path, held_out=True)
    assert image.edges[15, 8:12] == pytest.approx([0, 1, 1, 0])
    assert image.edges[5:10, 4] == pytest.approx([0, 0, 0.2, 0.2, 0])
    assert image.edges[0, 20] == 0  # the image's end is no edge


def test_nothing_that_is_held_out_is_trained_on(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, 24, (60, 80))
    document = json.loads((tmp_path / "instances.json").read_text())
    for image in document["images"]:
        image["split"] = "val" if image["id"] % 4 == 0 else "train"
    (tmp_path / "instances.json").write_text(json.dumps(document))
    trained, watched = (
        {image.path.name for image in read_edges(tmp_path, held_out=held_out)}
        for held_out in (False, True)
    )
    assert trained
    assert not trained & watched
    of_val = {image["file_name"] for image in document["images"] if image["split"] == "val"}
    assert not (trained | watched) & of_val


@pytest.mark.slow
def test_training_never_reads_a_photograph_that_is_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = SHARED / "bsds"
    if not directory.is_dir():
        pytest.skip(f"needs {directory}")
    document = json.loads((directory / "instances.json").read_text())
    forbidden = set()
    for image in document["images"]:
        content = (directory / "images" / image["file_name"]).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if image["split"] == "val" or int(sha256[:8], 16) < 0.1 * 2**32:
            forbidden.add(sha256)
    monkeypatch.setattr(edge_detector, "border", np.zeros_like)  # takes long, and nobody looks
    trained = {
        hashlib.sha256(image.path.read_bytes()).hexdigest()
        for image in read_edges(directory, held_out=False)
    }
    assert len(trained) > 150
    assert not trained & forbidden


def test_edges_stay_with_their_photograph_however_it_is_turned() -> None:
    rows, columns = np.indices((120, 160))
    disc = np.hypot(rows - 60, columns - 80) < 40
    pixels = np.where(disc[..., None], 230, (20, 20, 20)).astype(np.uint8)
    image = EdgeImage(Path(), Image.fromarray(pixels), border(disc).astype(np.float32))
    for seed in range(6):
        colours, edges, taught = sample(image, np.random.default_rng(seed))
        light = colours.mean(axis=2) > 0.5
        found = border(light & taught) & taught
        assert np.median(edges[found]) > 0.3
        assert edges[taught & ~light].mean() < 0.1


def test_a_stopped_training_ends_where_one_that_was_not_stopped_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "scenes", 3, 6, (60, 80))
    monkeypatch.setattr(edge_detector, "SIDE", 32)
    monkeypatch.setattr(edge_detector, "BATCH", 2)
    monkeypatch.setattr(edge_detector, "_schedule", lambda step, cycle: 1.0)

    def train(name: str, steps: int) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{name}.safetensors"
        folders = ["--photographs", str(tmp_path / "scenes"), "--work", str(tmp_path / name)]
        main([*folders, "--out", str(out), "--steps", str(steps)])
        return read_safetensors(out)

    first_samples = []
    samples = edge_detector.EdgeSamples

    def recorded(images: Sequence[EdgeImage], first: int) -> edge_detector.EdgeSamples:
        first_samples.append(first)
        return samples(images, first)

    monkeypatch.setattr(edge_detector, "EdgeSamples", recorded)
    begun = train("a", 2)
    with (tmp_path / "a" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 9}\n{"step"')  # as if killed before it was saved again
    resumed, whole = train("a", 4), train("b", 4)
    assert first_samples == [0, 4, 0]
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-2, atol=1e-3)
    assert any(not torch.equal(begun[name], tensor) for name, tensor in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_loss_is_least_where_the_answer_is_the_share_and_blind_to_what_is_not_taught() -> None:
    edges, taught = torch.full((1, 1, 8, 8), 0.3), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    right, wrong = torch.full_like(edges, 0.3).logit(), torch.full_like(edges, 0.8).logit()
    assert edge_loss(right, edges, taught) < edge_loss(wrong, edges, taught)
    taught[..., 4:] = False
    half_wrong = torch.where(taught, right, 9.0)
    assert edge_loss(half_wrong, edges, taught) == pytest.approx(
        edge_loss(right, edges, taught).item()
    )
    coarse = edge_loss(right[..., ::4, ::4], edges, taught)
    assert coarse == pytest.approx(edge_loss(right, edges, taught).item())
