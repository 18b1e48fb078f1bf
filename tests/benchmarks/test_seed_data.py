"""Samples for the shipped checkpoint: what is held out stays out, and batches can be repeated."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import click_scorer, mask_scorer
from benchmarks.seed_checkpoint import Training
from benchmarks.seed_config import Augmentation, HeldOut, load_seed_config
from benchmarks.seed_data import (
    HELD_OUT,
    ClickBatches,
    LabelledImage,
    SampleSource,
    crop_sample,
    main,
    near_sample,
    paste,
    read_folder,
)
from engine.scenes import write_scenes
from stages.rle import decode_rle, encode_rle

SIZE = 64
MILD = Augmentation(paste_probability=0.1, whole_probability=0.5)
NEAR = Augmentation(paste_probability=0.1, whole_probability=0.5, near_probability=0.6)
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scenes")
    write_scenes(directory, 3, 24, (60, 80))
    document = json.loads((directory / "instances.json").read_text())
    for image in document["images"]:
        image["split"] = "val" if image["id"] % 4 == 0 else "train"
    (directory / "instances.json").write_text(json.dumps(document))
    return directory


def hashes(images: list[LabelledImage]) -> set[str]:
    return {hashlib.sha256(image.path.read_bytes()).hexdigest() for image in images}


def test_a_tenth_of_all_hashes_and_every_validation_image_is_held_out() -> None:
    assert HELD_OUT.holds("00000000" + "f" * 56, "train")
    assert HELD_OUT.holds("19999999" + "0" * 56, "train")
    assert not HELD_OUT.holds("1999999a" + "0" * 56, "train")
    assert HELD_OUT.holds("ffffffff" + "0" * 56, "val")
    assert HELD_OUT.holds("ffffffff" + "0" * 56, "val2017")


def test_no_image_is_both_trained_on_and_held_out(folder: Path) -> None:
    training = hashes(read_folder(folder, held_out=False))
    held_out = hashes(read_folder(folder, held_out=True))
    assert training
    assert held_out
    assert not training & held_out
    assert len(training | held_out) == 24
    assert not any(HELD_OUT.holds(sha256, "train") for sha256 in training)
    names = {image.path.name for image in read_folder(folder, held_out=False)}
    assert not names & {f"scene_3_{index:06d}.jpg" for index in range(0, 24, 4)}


def test_masks_may_be_polygons_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "images/one.png")
    square = [[10, 10, 30, 10, 30, 20, 10, 20]]
    shapes = [square, [], {"size": [6, 8], "counts": [0, 48]}, {"size": [60, 80], "counts": "?"}]
    image = {"id": 1, "file_name": "one.png", "height": 60, "width": 80}
    annotations = [{"id": i, "image_id": 1, "segmentation": s} for i, s in enumerate(shapes)]
    document = {"images": [image], "annotations": annotations}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    (found,) = read_folder(tmp_path, held_out=False, rule=HeldOut(hash_share=0))
    (rle,) = found.rles
    assert decode_rle(rle).sum() == 200
    assert len(found.weights) == 1


def test_a_training_may_hold_out_other_images(folder: Path) -> None:
    nothing = HeldOut(splits=(), hash_share=0)
    assert len(read_folder(folder, held_out=False, rule=nothing)) == 24
    assert read_folder(folder, held_out=True, rule=nothing) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bsds", "coco"])
def test_training_never_reads_a_photograph_that_is_held_out(name: str, tmp_path: Path) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not there")
    document = json.loads((SHARED / name / "instances.json").read_text())
    forbidden = set()
    for image in document["images"]:
        content = (SHARED / name / "images" / image["file_name"]).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if image["split"] == "val" or int(sha256[:8], 16) < 0.1 * 2**32:
            forbidden.add(sha256)
    assert len(forbidden) >= (100 if name == "bsds" else 25)
    few_scenes = load_seed_config().model_copy(update={"scenes": 1})
    data = Training(few_scenes, tmp_path, seed=0).gather([SHARED / name])
    assert hashes(data.held_out[name]) <= forbidden
    of_checkpoint = [image for images in data.photographs for image in images]
    of_scorers = [mask_scorer.taught_and_watched(SHARED / name)[0]] if name == "bsds" else []
    of_scorers.append(click_scorer.taught_and_watched([SHARED / name])[0])
    for images in (of_checkpoint, *of_scorers):
        assert len(hashes(images)) > 100
        assert not hashes(images) & forbidden


def test_held_out_part_of_a_folder_can_be_written_down(folder: Path, tmp_path: Path) -> None:
    main(["--held-out", str(folder), "--out", str(tmp_path / "held_out.json")])
    document = json.loads((tmp_path / "held_out.json").read_text())
    names = {image["file_name"] for image in document["images"]}
    expected = {image.path.name for image in read_folder(folder, held_out=True)}
    assert names == expected
    ids = {image["id"] for image in document["images"]}
    assert {annotation["image_id"] for annotation in document["annotations"]} <= ids


def test_batch_of_a_number_is_always_the_same(folder: Path) -> None:
    source = SampleSource([(1.0, read_folder(folder, held_out=False))], SIZE, MILD)
    whole, again, second = (
        ClickBatches(source, seed=1, first=5, places=places, clicks=4).batch(5)
        for places in (range(2), range(2), range(1, 2))
    )
    for name in ("images", "masks", "clicks"):
        assert torch.equal(getattr(whole, name), getattr(again, name))
        assert torch.equal(getattr(whole, name)[1:], getattr(second, name))


def test_clicks_lie_on_their_masks_and_masks_off_the_padding(folder: Path) -> None:
    source = SampleSource([(1.0, read_folder(folder, held_out=False))], SIZE, MILD)
    batch = ClickBatches(source, seed=1, first=0, places=range(4), clicks=6).batch(0)
    for image in range(4):
        for click, mask in zip(batch.clicks[image], batch.masks[image], strict=True):
            assert mask[click[1], click[0]]
            assert not (mask & ~batch.valid[image]).any()
    padding = ~batch.valid.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert (batch.images * padding[:, None] == 0).all()


def test_cropped_masks_still_lie_on_what_they_outline(folder: Path, tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:50, 30:70] = True
    pixels[mask] = 255
    Image.fromarray(pixels).save(tmp_path / "square.png")
    image = LabelledImage(tmp_path / "square.png", (60, 80), (encode_rle(mask),), (1.0,))
    for seed in range(20):
        sample = crop_sample(image, SIZE, 1, np.random.default_rng(seed), MILD)
        if len(sample.masks):
            bright = sample.pixels[2::4, 2::4, 0] > 127
            assert (bright ^ sample.masks[0]).mean() < 0.06


def test_pasted_regions_cover_what_was_there(folder: Path) -> None:
    images = read_folder(folder, held_out=False)
    rng = np.random.default_rng(0)
    below, above = (crop_sample(image, SIZE, 8, rng, MILD) for image in images[:2])
    both = paste(below, above, rng)
    assert both.size_hw == below.size_hw
    assert len(both.masks) > 0
    assert (both.pixels != below.pixels).any()


def square(folder: Path, side: int) -> LabelledImage:
    """A white square of so many pixels in the middle of a black image."""
    pixels = np.zeros((120, 180, 3), dtype=np.uint8)
    mask = np.zeros((120, 180), dtype=bool)
    mask[60 - side // 2 : 60 + side // 2, 90 - side // 2 : 90 + side // 2] = True
    pixels[mask] = 255
    path = folder / f"{side}.png"
    Image.fromarray(pixels).save(path)
    return LabelledImage(path, (120, 180), (encode_rle(mask),), (1.0,))


def test_a_near_sample_is_the_window_around_a_small_region_enlarged(tmp_path: Path) -> None:
    image = square(tmp_path, 20)
    for seed in range(10):
        sample = near_sample(image, 128, 4, np.random.default_rng(seed))
        assert sample is not None
        (mask,) = sample.masks
        share = mask.sum() / mask.size
        assert 400 / (60 * 1.25) ** 2 < share < 400 / (60 / 1.25) ** 2
        bright = sample.pixels[2::4, 2::4, 0] > 127
        assert (bright ^ mask).mean() < 0.06


def test_a_region_too_large_for_a_window_gives_no_near_sample(tmp_path: Path) -> None:
    image = square(tmp_path, 100)
    assert all(near_sample(image, 128, 4, np.random.default_rng(seed)) is None for seed in range(5))
    source = SampleSource([(1.0, [image])], 128, NEAR)
    assert len(source.sample(np.random.default_rng(0), 4).masks)
