import json

import numpy as np
import pytest
from PIL import Image

from engine.corpus import CorpusConfig, build_corpus
from engine.errors import ConfigError
from engine.ground_truth import (
    GROUND_TRUTH,
    ROWS_PER_GROUP,
    GroundTruth,
    build_ground_truth,
    resize_mask,
)
from engine.images import ImageLimits, read_pixels, turn_upright
from engine.sources import CocoSource, FolderSource, ScenesSource
from engine.store import open_store
from stages.rle import decode_rle, encode_rle

H, W = 16, 24


class Annotated:
    """A COCO-style folder, filled one image and one mask at a time."""

    def __init__(self, folder):
        self.folder = folder
        self.images, self.annotations = [], []
        (folder / "images").mkdir(parents=True)

    def image(self, image_id, size_hw=(H, W), orientation=None, seed=None, **fields):
        rng = np.random.default_rng(image_id if seed is None else seed)
        pixels = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        name = f"{image_id}.png"
        Image.fromarray(pixels).save(self.folder / "images" / name, exif=exif)
        self.images.append({"id": image_id, "file_name": name, **fields})
        return pixels

    def annotation(self, image_id, segmentation, **fields):
        if isinstance(segmentation, np.ndarray):
            segmentation = encode_rle(segmentation).model_dump(mode="json")
        self.annotations.append({"image_id": image_id, "segmentation": segmentation, **fields})

    def source(self, **options):
        path = self.folder / "instances.json"
        path.write_text(json.dumps({"images": self.images, "annotations": self.annotations}))
        return CocoSource(name=self.folder.name, annotations=str(path), **options)


@pytest.fixture
def coco(tmp_path):
    return Annotated(tmp_path / "set")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


def build(store, *sources):
    corpus = build_corpus(store, sources, CorpusConfig())
    return build_ground_truth(store, sources, corpus), corpus


def box(y0, y1, x0, x1, size_hw=(H, W)):
    mask = np.zeros(size_hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_polygons_of_a_size_that_is_not_the_images_are_refused_undrawn(coco, store):
    coco.image(1, height=10**8, width=10**8)
    coco.annotation(1, [[0, 0, 10**8, 0, 10**8, 10**8]])  # drawing it would take minutes
    coco.annotation(1, box(2, 5, 3, 9))  # which says its own size
    truth, _ = build(store, coco.source())
    assert truth.counts["set"] == {"kept": 1, "size_mismatch": 1}


def test_masks_of_every_form_are_found_under_their_image(coco, store):
    for image_id in (30, 10, 20):
        coco.image(image_id, height=H, width=W)
    coco.annotation(10, box(1, 5, 2, 9))
    coco.annotation(30, [[2, 3, 8, 3, 8, 9, 2, 9]])
    coco.annotation(30, {"size": [H, W], "counts": [0, H, H * W - H]})
    truth, _ = build(store, coco.source())
    assert truth.image_ids.tolist() == [0, 1, 2]
    assert [np.array_equal(decode_rle(m), box(1, 5, 2, 9)) for m in truth.masks(1)] == [True]
    polygon, column = (decode_rle(rle) for rle in truth.masks(0))
    assert np.array_equal(polygon, box(3, 9, 2, 8))
    assert np.array_equal(column, box(0, H, 0, 1))
    assert truth.counts == {"set": {"kept": 3}}


def test_an_image_nobody_found_anything_in_is_not_one_nobody_looked_at(coco, tmp_path, store):
    coco.image(1)
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "plain" / "x.png")
    truth, _ = build(store, FolderSource(name="plain", path=str(tmp_path / "plain")), coco.source())
    assert truth.image_ids.tolist() == [1]
    assert truth.masks(1) == []
    assert 0 not in truth
    assert 2 not in truth
    with pytest.raises(ConfigError, match="image 0 has no ground truth"):
        truth.masks(0)


def test_a_coco_file_without_annotations_is_no_ground_truth(coco, store):
    coco.image(1)
    source = coco.source()
    path = coco.folder / "instances.json"
    path.write_text(json.dumps({"images": coco.images}))
    truth, _ = build(store, source)
    assert truth.image_ids.tolist() == []
    assert 0 not in truth


def test_text_that_cannot_be_stored_costs_nothing_else(coco, store):
    coco.image(1, split="\ud800")
    coco.images[0]["id"] = "\ud800"
    coco.annotation("\ud800", box(0, 3, 0, 3), votes=3_000_000_000)
    truth, _ = build(store, coco.source())
    assert truth.counts["set"] == {"kept": 1}


def test_a_file_that_was_replaced_since_the_corpus_was_recorded_is_refused(coco, store):
    coco.image(1)
    coco.image(2)
    source = coco.source()
    corpus = build_corpus(store, [source], CorpusConfig())
    del coco.images[1]
    coco.source()
    with pytest.raises(ConfigError, match="names no image '2' any more"):
        build_ground_truth(store, [source], corpus)


def test_ids_that_a_table_has_made_floats_name_the_same_images(coco, store):
    for image_id in (7, 8.0):
        coco.image(image_id, seed=int(image_id))
    for image_id in (7.0, 8, 8.5):
        coco.annotation(image_id, box(0, 3, 0, 3))
    truth, _ = build(store, coco.source())
    assert [len(truth.masks(image_id)) for image_id in (0, 1)] == [1, 1]
    assert truth.counts["set"] == {"kept": 2, "unknown_image": 1}


@pytest.mark.parametrize("home", [1, 99])
def test_annotations_of_which_none_is_kept_are_refused_with_the_reasons(coco, store, home):
    coco.image(1)
    coco.annotation(home, box(0, 3, 0, 3, (H + 1, W)))
    reason = "1 size_mismatch" if home == 1 else "1 unknown_image"
    with pytest.raises(ConfigError, match=rf"source set: .*instances\.json .*: 0 kept, {reason}; "):
        build(store, coco.source())
    assert not store.exists(GROUND_TRUTH)


def test_annotations_of_images_that_cannot_be_used_may_all_be_refused(coco, store):
    coco.image(1)
    coco.image(2)
    (coco.folder / "images" / "1.png").write_bytes(b"")
    coco.annotation(1, box(0, 3, 0, 3))
    coco.annotation(99, box(0, 3, 0, 3))
    truth, _ = build(store, coco.source())
    assert truth.counts["set"] == {"image_not_usable": 1, "unknown_image": 1}


def test_crowds_are_kept_with_their_flag_and_left_out_of_the_objects(coco, store):
    coco.image(1)
    coco.annotation(1, box(0, 9, 0, 9), iscrowd=1)
    coco.annotation(1, box(2, 4, 2, 4), iscrowd=0, votes=3)
    truth, _ = build(store, coco.source())
    crowd, single = truth.all_masks(0)
    assert (crowd.iscrowd, crowd.area, crowd.votes) == (True, 81, None)
    assert (single.iscrowd, single.area, single.votes) == (False, 4, 3)
    assert truth.masks(0) == [single.segmentation]


def test_votes_and_area_filter_only_what_they_are_told_to(coco, store):
    coco.image(1)
    for size, votes in ((2, 1), (4, 2), (2, 3), (5, None)):
        extra = {} if votes is None else {"votes": votes}
        coco.annotation(1, box(0, size, 0, size), **extra)
    truth, _ = build(store, coco.source(min_votes=2, min_area=5))
    assert [mask.area for mask in truth.all_masks(0)] == [16, 25]
    assert truth.counts["set"] == {"kept": 2, "few_votes": 1, "small": 1}


def test_what_makes_no_sense_is_counted_by_reason_and_the_rest_is_kept(coco, store):
    coco.image(1)
    coco.image(2, seed=1)  # the same pixels as image 1
    coco.image(3)
    (coco.folder / "images" / "3.png").write_bytes(b"")
    for image_id in (1, 2, 3, 3, 99, None):
        coco.annotation(image_id, box(0, 3, 0, 3))
    coco.annotations += ["rubbish", {}]
    coco.annotation(1, box(0, 3, 0, 3, (H + 1, W)))
    coco.annotation(1, {"size": [H, W], "counts": "rubbish"})
    coco.annotation(1, None)
    coco.annotation(1, np.zeros((H, W), bool))
    truth, _ = build(store, coco.source())
    assert [mask.area for mask in truth.all_masks(0)] == [9]
    assert truth.image_ids.tolist() == [0]
    assert truth.counts["set"] == {
        "kept": 1,
        "unknown_image": 4,
        "image_not_usable": 3,
        "size_mismatch": 1,
        "malformed": 2,
        "empty": 1,
    }


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_of_the_stored_frame_are_turned_with_their_image(coco, store, orientation):
    stored = coco.image(1, orientation=orientation)
    bright = stored[..., 0] > 128
    coco.annotation(1, bright)
    truth, corpus = build(store, coco.source())
    row = corpus.row(0)
    upright = read_pixels((coco.folder / "images" / "1.png").read_bytes(), ImageLimits())
    assert (row.height, row.width) == upright.shape[:2] == (W, H)
    assert np.array_equal(decode_rle(truth.masks(0)[0]), upright[..., 0] > 128)
    assert np.array_equal(turn_upright(bright, orientation), upright[..., 0] > 128)


def test_masks_that_are_upright_already_are_left_as_they_are(coco, store):
    coco.image(1, orientation=6)
    coco.image(2, orientation=3)
    coco.annotation(1, box(0, 3, 0, 5, (W, H)))
    coco.annotation(2, box(0, 3, 0, 5))
    truth, _ = build(store, coco.source())
    assert np.array_equal(decode_rle(truth.masks(0)[0]), box(0, 3, 0, 5, (W, H)))
    assert np.array_equal(decode_rle(truth.masks(1)[0]), box(0, 3, 0, 5))


def test_polygons_without_a_declared_size_take_that_of_the_image(coco, store):
    coco.image(1)
    coco.annotation(1, [[2, 3, 8, 3, 8, 9, 2, 9]])
    truth, _ = build(store, coco.source())
    assert truth.masks(0)[0].size == (H, W)


def test_only_the_chosen_split_and_number_of_images_have_rows(coco, store):
    for image_id in range(12):
        coco.image(image_id, split="val" if image_id % 2 else "train")
        coco.annotation(image_id, box(0, image_id + 1, 0, 2))
    truth, corpus = build(store, coco.source(split="val", max_images=4))
    rows = corpus.rows(range(len(corpus)))
    assert len(rows) == 4
    for row in rows:
        assert truth.all_masks(row.image_id)[0].area == 2 * (int(row.source_id) + 1)
    assert truth.counts["set"]["kept"] == 4


def test_any_row_is_found_across_row_groups_and_sources(coco, tmp_path, store):
    other = Annotated(tmp_path / "other")
    count = ROWS_PER_GROUP + 3
    for image_id in range(count):
        coco.image(image_id, size_hw=(1, 60))
        coco.annotation(image_id, box(0, 1, 0, image_id + 1, (1, 60)))
        other.image(image_id, size_hw=(1, 60), seed=1000 + image_id)
        other.annotation(image_id, box(0, 1, image_id, 60, (1, 60)))
    truth, _ = build(store, coco.source(), other.source())
    areas = [truth.all_masks(int(image_id))[0].area for image_id in truth.image_ids]
    assert areas == [*range(1, count + 1), *(60 - i for i in range(count))]


def test_masks_reach_the_work_size_and_those_too_thin_for_it_are_left_out(coco, store):
    coco.image(1, size_hw=(40, 60))
    coco.annotation(1, box(10, 30, 20, 40, (40, 60)))
    coco.annotation(1, box(0, 1, 0, 60, (40, 60)))
    truth, corpus = build(store, coco.source())
    (mask,) = truth.masks_at(corpus.row(0), (20, 30))
    assert np.array_equal(mask, box(5, 15, 10, 20, (20, 30)))
    same, thin = truth.masks_at(corpus.row(0), (40, 60))
    assert (same.sum(), thin.sum()) == (400, 60)


@pytest.mark.parametrize("size_hw", [(7, 5), (16, 24), (31, 100), (1, 1)])
def test_resizing_takes_the_pixel_under_each_new_centre(size_hw):
    mask = np.random.default_rng(0).random((H, W)) < 0.5
    resized = resize_mask(mask, size_hw)
    assert resized.shape == size_hw
    for y in range(size_hw[0]):
        for x in range(size_hw[1]):
            old = int((y + 0.5) * H / size_hw[0]), int((x + 0.5) * W / size_hw[1])
            assert resized[y, x] == mask[old]


def test_ground_truth_is_written_once_and_read_again_from_the_store(coco, store):
    coco.image(1)
    coco.annotation(1, box(0, 3, 0, 3))
    source = coco.source()
    first, corpus = build(store, source)
    before = store.read(GROUND_TRUTH)
    (coco.folder / "instances.json").unlink()
    again = build_ground_truth(store, [source], corpus)
    assert store.read(GROUND_TRUTH) == before
    assert again.all_masks(0) == first.all_masks(0) == GroundTruth(store).all_masks(0)
    assert again.counts == first.counts


def test_drawn_scenes_bring_their_masks(store):
    truth, corpus = build(store, ScenesSource(name="drawn", count=2, size_hw=(96, 128)))
    assert truth.image_ids.tolist() == [0, 1]
    for image_id in (0, 1):
        masks = truth.masks_at(corpus.row(image_id), (96, 128))
        assert len(masks) > 1
    assert set(truth.counts["drawn"]) == {"kept"}
