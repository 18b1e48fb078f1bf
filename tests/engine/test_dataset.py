from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.corpus import CorpusRow
from engine.dataset import MixConfig, ShardDataset, _Placement, build_index
from engine.errors import EngineError
from engine.images import WorkSize
from model.training import TrainingBatch
from model.transforms import PIXEL_MEAN, PIXEL_STD, ResizeLongestSide
from runs import SmallRun
from stages.records import ImageRecord, ImageStatus, StageName

MANUAL, AUTOMATIC = StageName.ASSISTED_MANUAL, StageName.FULLY_AUTOMATIC
MIX = MixConfig(assisted_manual=4, semi_automatic=3, fully_automatic=1)
SIZE = 128
"""Side of the tiny model's input."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Images 0 to 4 were drawn by people, 5 to 9 by the model, which found nothing in 7."""
    run = SmallRun(tmp_path_factory.mktemp("dataset"), num_images=10)
    run.seal_round(0, MANUAL, range(5), masks_per_image=3)
    run.seal_round(1, AUTOMATIC, range(5, 10), without_masks=[7])
    return run


FOLDERS = ("rounds/00-assisted_manual", "rounds/01-fully_automatic")


def dataset(run: SmallRun, folders: tuple[str, ...] = FOLDERS, **changes: object) -> ShardDataset:
    options = {"batch_images": 4, "masks_per_image": 2, "seed": 11, "mix": MIX} | changes
    index = build_index(run.store, folders, options["mix"])  # type: ignore[arg-type]
    return ShardDataset(context=run.context(), index=index, **options)  # type: ignore[arg-type]


def tensors(batch: TrainingBatch) -> dict[str, Tensor]:
    fields = ("masks", "image_index", "valid", "images", "embeddings")
    return {name: t for name in fields if (t := getattr(batch, name)) is not None}


def assert_equal(first: TrainingBatch, second: TrainingBatch) -> None:
    one, other = tensors(first), tensors(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def red_of(images: Tensor) -> Tensor:
    """(B, S, S) where the red square is in images as the model is given them."""
    mean, std = (torch.tensor(s)[:, None, None] for s in (PIXEL_MEAN, PIXEL_STD))
    colours = images * std + mean
    return (colours[:, 0] > 180) & (colours[:, 1] < 60)


def test_the_index_holds_every_image_that_has_a_mask(run: SmallRun) -> None:
    index = build_index(run.store, FOLDERS, MIX)
    assert len(index) == 9
    assert index.repeats.tolist() == [4] * 5 + [1] * 4
    assert len(index.paths) == 4
    images = [dataset(run).example(p).record.image_id for p in range(24)]
    assert 7 not in images


def test_one_epoch_shows_every_image_as_often_as_its_stage_is_to_be_seen(run: SmallRun) -> None:
    drawn = dataset(run)
    for epoch in (0, 1, 5):
        positions = range(24 * epoch, 24 * (epoch + 1))
        counts = Counter(drawn.example(p).record.image_id for p in positions)
        assert counts == {0: 4, 1: 4, 2: 4, 3: 4, 4: 4, 5: 1, 6: 1, 8: 1, 9: 1}


def test_every_epoch_has_an_order_of_its_own(run: SmallRun) -> None:
    drawn = dataset(run)
    orders = [
        [drawn.example(p).record.image_id for p in range(24 * e, 24 * (e + 1))] for e in (0, 1)
    ]
    assert orders[0] != orders[1]
    other = dataset(run, seed=12)
    assert orders[0] != [other.example(p).record.image_id for p in range(24)]


def test_any_step_can_be_met_again_by_a_dataset_that_starts_there(run: SmallRun) -> None:
    first = dataset(run)
    batches = {step: first.batch(step) for step in range(14)}  # into the third epoch
    for step in (13, 5, 0, 6):
        assert_equal(dataset(run).batch(step), batches[step])
    assert_equal(first.batch(3), batches[3])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_take_the_parts_of_one_batch(run: SmallRun, world_size: int) -> None:
    ranks = [dataset(run, rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 7):
        whole, parts = dataset(run).batch(step), [rank.batch(step) for rank in ranks]
        assert whole.images is not None
        assert torch.equal(
            torch.cat([p.images for p in parts if p.images is not None]), whole.images
        )
        assert torch.equal(torch.cat([p.masks for p in parts]), whole.masks)


def test_a_batch_is_what_the_trainer_expects(run: SmallRun) -> None:
    batch = dataset(run, folders=FOLDERS[:1]).batch(0)
    assert batch.images is not None
    assert batch.embeddings is None
    assert batch.images.shape == (4, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.masks.shape == (8, SIZE, SIZE)
    assert batch.masks.dtype == batch.valid.dtype == torch.bool
    assert batch.image_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.valid.shape == (4, SIZE, SIZE)


def test_masks_are_chosen_anew_each_time_and_none_twice(run: SmallRun) -> None:
    drawn = dataset(run, folders=FOLDERS[:1])
    chosen = [drawn.example(position).masks for position in range(40)]
    assert all(len(set(masks)) == 2 for masks in chosen)
    assert len(set(chosen)) == 3
    few = dataset(run, folders=FOLDERS[1:])
    assert all(few.example(position).masks == (0,) for position in range(8))


def test_images_and_masks_stay_together_when_they_are_only_fitted(run: SmallRun) -> None:
    drawn = dataset(run, folders=FOLDERS[1:])
    for step in range(3):
        batch = drawn.batch(step)
        assert batch.images is not None
        red = red_of(batch.images)
        for mask, image in zip(batch.masks, batch.image_index, strict=True):
            assert iou(red[image], mask) > 0.93


def test_images_and_masks_stay_together_under_large_scale_jitter(run: SmallRun) -> None:
    drawn = dataset(run, folders=FOLDERS[:1], masks_per_image=1)
    seen = 0
    for step in range(12):
        batch = drawn.batch(step)
        assert batch.images is not None
        red = red_of(batch.images)
        for mask, image in zip(batch.masks, batch.image_index, strict=True):
            if mask.sum() > 100:  # else too small, or beyond the edge
                assert iou(red[image], mask) > 0.85
                seen += 1
    assert seen > 20


def test_jitter_shrinks_and_enlarges_what_people_drew_and_nothing_else(run: SmallRun) -> None:
    jittered = dataset(run, folders=FOLDERS[:1])
    sides = [_longest_side(v) for step in range(12) for v in jittered.batch(step).valid]
    assert min(sides) < 0.4 * SIZE
    assert max(sides) == SIZE
    assert len(set(sides)) > 10
    fitted = dataset(run, folders=FOLDERS[1:])
    assert {_longest_side(v) for step in range(3) for v in fitted.batch(step).valid} == {SIZE}
    narrow = dataset(run, folders=FOLDERS[:1], mix=MixConfig(scale_jitter=(0.5, 0.5)))
    assert {_longest_side(v) for step in range(3) for v in narrow.batch(step).valid} == {SIZE // 2}


def test_the_valid_region_is_where_the_image_is(run: SmallRun) -> None:
    for drawn in (dataset(run, folders=FOLDERS[:1]), dataset(run, folders=FOLDERS[1:])):
        batch = drawn.batch(0)
        assert batch.images is not None
        for image, valid in zip(batch.images, batch.valid, strict=True):
            assert torch.equal((image != 0).any(dim=0), valid)
        assert not (batch.masks & ~batch.valid[batch.image_index]).any()


def test_a_fitted_image_is_what_the_predictor_would_show_the_model(run: SmallRun) -> None:
    drawn = dataset(run, folders=FOLDERS[1:])
    batch = drawn.batch(0)
    assert batch.images is not None
    for example, image in zip(drawn.examples(0), batch.images, strict=True):
        row = run.corpus.row(example.record.image_id)
        pixels = run.context().read_image(row).pixels
        size_hw = (pixels.shape[0], pixels.shape[1])
        assert torch.allclose(image, ResizeLongestSide(size_hw, SIZE).apply_image(pixels))


@pytest.mark.parametrize("size_hw", [(45, 127), (127, 45), (5, 256), (1000, 37), (1, 1)])
def test_masks_of_any_shape_are_fitted_as_their_images_are(size_hw: tuple[int, int]) -> None:
    place = _Placement.fitting(size_hw, SIZE)
    assert place.size_hw == ResizeLongestSide(size_hw, SIZE).size_hw_input


def test_a_frozen_encoder_is_given_embeddings_and_no_jitter(run: SmallRun) -> None:
    drawn = dataset(run, frozen_encoder=True)
    batch = drawn.batch(0)
    assert batch.images is None
    assert batch.embeddings is not None
    context = run.context()
    for example, embedding in zip(drawn.examples(0), batch.embeddings, strict=True):
        row = run.corpus.row(example.record.image_id)
        assert torch.equal(context.embedding(row, context.read_image(row))[0], embedding)
        assert torch.equal(drawn.embedding(example)[0], embedding)
    assert {_longest_side(valid) for valid in batch.valid} == {SIZE}


def test_masks_made_at_a_smaller_work_size_fit_their_images(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=4)
    small = WorkSize(max_short_side=30)
    folder = run.seal_round(0, AUTOMATIC, range(4), work_size=small)
    drawn = ShardDataset(
        context=run.context(work_size=small),
        index=build_index(run.store, [folder], MIX),
        mix=MIX,
        batch_images=4,
        masks_per_image=1,
        seed=0,
    )
    batch = drawn.batch(0)
    assert batch.images is not None
    red = red_of(batch.images)
    assert all(iou(red[i], mask) > 0.75 for i, mask in enumerate(batch.masks))


def test_rounds_without_a_mask_are_nothing_to_train_on(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=2)
    folder = run.seal_round(0, AUTOMATIC, range(2), without_masks=[0, 1])
    with pytest.raises(EngineError, match=f"nothing to train on: no mask in {folder}"):
        build_index(run.store, [folder], MIX)
    with pytest.raises(EngineError, match="no mask in any round"):
        build_index(run.store, [], MIX)


def test_prefilled_masks_that_nobody_confirmed_are_not_learnt_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SmallRun(tmp_path, num_images=4)
    whole = run._record

    def record(row: CorpusRow, *rest: Any) -> ImageRecord:
        status = ImageStatus.SKIPPED if row.image_id == 2 else ImageStatus.OK
        return whole(row, *rest).model_copy(update={"status": status})

    monkeypatch.setattr(run, "_record", record)
    folder = run.seal_round(0, StageName.SEMI_AUTOMATIC, range(4), images_per_shard=4)
    assert build_index(run.store, [folder], MIX).row.tolist() == [0, 1, 3]


def test_images_that_vanished_after_their_annotation_are_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = SmallRun(tmp_path, num_images=3)
    folder = run.seal_round(0, AUTOMATIC, [0, 1])
    drawn = dataset(run, folders=(folder,))
    run.photo(run.rows[0]).unlink()
    assert len(drawn.batch(0).valid) == 2  # of four, which are two images twice
    assert "0.png, readable when annotated: no such file" in caplog.text
    run.photo(run.rows[1]).write_bytes(b"no image any more")
    with pytest.raises(EngineError, match="no image of training step 0 can be read any more"):
        drawn.batch(0)


def test_a_training_whose_storage_is_away_ends(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=1)
    drawn = dataset(run, folders=(run.seal_round(0, AUTOMATIC, [0]),))
    run.photos.rename(tmp_path / "away")
    with pytest.raises(EngineError, match=r"cannot train on .*0\.png now: .*is its disk mounted"):
        drawn.batch(0)


def _longest_side(valid: Tensor) -> int:
    return int(max(valid.any(dim=0).sum(), valid.any(dim=1).sum()))


def iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / max(1, int((first | second).sum())))
