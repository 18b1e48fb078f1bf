"""Drawn scenes: exact, nested, repeatable."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from engine.scene_shapes import THINGS
from engine.scenes import MAX_MASKS, Scene, draw_scene, write_scenes
from stages.records import Rle
from stages.rle import decode_rle

SIZE = (120, 160)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(5, index, SIZE) for index in range(12)]


def test_same_number_gives_the_same_scene_whatever_was_drawn_before(scenes: list[Scene]) -> None:
    again = draw_scene(5, 7, SIZE)
    assert np.array_equal(again.pixels, scenes[7].pixels)
    assert len(again.masks) == len(scenes[7].masks)
    assert all(np.array_equal(a, b) for a, b in zip(again.masks, scenes[7].masks, strict=True))
    assert again.parents == scenes[7].parents


def test_other_seed_or_index_gives_another_scene(scenes: list[Scene]) -> None:
    assert not np.array_equal(scenes[0].pixels, scenes[1].pixels)
    assert not np.array_equal(scenes[0].pixels, draw_scene(6, 0, SIZE).pixels)


def test_scene_has_the_frame_it_was_asked_for(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.pixels.shape == (*SIZE, 3)
        assert scene.pixels.dtype == np.uint8
        assert all(mask.shape == SIZE and mask.dtype == bool for mask in scene.masks)


def test_scenes_are_neither_empty_nor_overfull(scenes: list[Scene]) -> None:
    counts = [len(scene.masks) for scene in scenes]
    assert min(counts) >= 2
    assert max(counts) <= MAX_MASKS
    assert np.mean(counts) > 8


def test_parts_lie_within_their_parents_and_are_smaller(scenes: list[Scene]) -> None:
    nested = 0
    for scene in scenes:
        for mask, parent in zip(scene.masks, scene.parents, strict=True):
            if parent is not None:
                assert not (mask & ~scene.masks[parent]).any()
                assert mask.sum() < scene.masks[parent].sum()
                nested += 1
    assert nested > 20


def test_masks_without_parent_share_no_pixel(scenes: list[Scene]) -> None:
    for scene in scenes:
        tops = [m for m, parent in zip(scene.masks, scene.parents, strict=True) if parent is None]
        assert np.sum(tops, axis=0).max() <= 1


def test_masks_come_in_all_sizes(scenes: list[Scene]) -> None:
    shares = [mask.mean() for scene in scenes for mask in scene.masks]
    assert min(shares) < 0.005
    assert max(shares) > 0.3


def test_some_masks_have_holes_or_pieces(scenes: list[Scene]) -> None:
    pieces = [ndimage.label(mask)[1] for scene in scenes for mask in scene.masks]
    assert max(pieces) > 1


def test_regions_are_textured_and_borders_are_visible(scenes: list[Scene]) -> None:
    scene = scenes[0]
    grey = scene.pixels.mean(axis=2)
    assert all(grey[mask].std() > 0.5 for mask in scene.masks)
    assert len(np.unique(scene.pixels.reshape(-1, 3), axis=0)) > 500


def test_every_kind_of_thing_can_be_drawn_from_any_number() -> None:
    for kind in THINGS:
        for seed in range(10):
            shape = kind(np.random.default_rng(seed))
            assert all(np.isfinite(ring).all() for ring in shape.rings)


def test_odd_sizes_can_be_drawn() -> None:
    for size in ((33, 200), (64, 64), (201, 97)):
        assert draw_scene(1, 0, size).pixels.shape == (*size, 3)


def test_written_folder_holds_the_scenes_in_coco_style(tmp_path: Path) -> None:
    write_scenes(tmp_path, 5, 3, SIZE)
    document = json.loads((tmp_path / "instances.json").read_text())
    assert [image["id"] for image in document["images"]] == [0, 1, 2]
    for image in document["images"]:
        with Image.open(tmp_path / "images" / image["file_name"]) as file:
            assert file.size == (SIZE[1], SIZE[0])
        scene = draw_scene(5, image["id"], SIZE)
        mine = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        for annotation, mask in zip(mine, scene.masks, strict=True):
            assert np.array_equal(decode_rle(Rle(**annotation["segmentation"])), mask)
            assert annotation["area"] == mask.sum()


def test_stopped_writing_is_completed_and_keeps_what_was_there(tmp_path: Path) -> None:
    write_scenes(tmp_path, 5, 1, SIZE)
    first = next((tmp_path / "images").iterdir())
    before = first.stat().st_mtime_ns
    write_scenes(tmp_path, 5, 2, SIZE)
    assert first.stat().st_mtime_ns == before
    assert len(json.loads((tmp_path / "instances.json").read_text())["images"]) == 2
    assert not list(tmp_path.rglob("*staged*"))
