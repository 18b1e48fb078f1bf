"""The scorer of masks: what it is taught, what it never sees, and that its masks are kept."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import mask_scorer, seed_data
from benchmarks.mask_scorer import ScoredMasks, figures, main, scored_masks, train
from benchmarks.seed_config import HeldOut
from benchmarks.seed_data import LabelledImage, read_folder
from fakes import OneAfterAnother, split_scenes, tiny_sam
from model.checkpoint import read_safetensors
from model.mask_scorer import NUM_FEATURES, MaskScorer


def masks_told_by_one_feature(seed: int) -> ScoredMasks:
    rng = np.random.default_rng(seed)
    features = rng.normal(5, 3, (2000, NUM_FEATURES)).astype(np.float32)
    return ScoredMasks(features, 1 / (1 + np.exp(-(features[:, 3] - 5))))


def test_what_tells_good_masks_from_bad_ones_is_learnt() -> None:
    scorer, watched = train(masks_told_by_one_feature(0)), masks_told_by_one_feature(1)
    found = figures(scorer, watched)
    assert found["held_out_error"] < 0.06
    assert found["held_out_correlation"] > 0.95
    assert figures(MaskScorer().eval(), watched)["held_out_error"] > 0.2


def test_masks_of_the_training_side_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, of_val = split_scenes(tmp_path)
    made: dict[str, ScoredMasks] = {}
    taught: list[ScoredMasks] = []

    def recorded(_: object, image: LabelledImage) -> ScoredMasks:
        made[image.path.name] = scored_masks(tiny_sam(), image)
        return made[image.path.name]

    def recorded_training(masks: ScoredMasks) -> MaskScorer:
        taught.append(masks)
        return train(masks)

    monkeypatch.setattr(seed_data, "HELD_OUT", HeldOut(hash_share=0.5))
    monkeypatch.setattr(mask_scorer, "train", recorded_training)
    monkeypatch.setattr(mask_scorer, "ProcessPoolExecutor", OneAfterAnother)
    monkeypatch.setattr(mask_scorer, "scored_masks", recorded)
    monkeypatch.setattr(mask_scorer, "POINTS_PER_SIDE", 3)
    monkeypatch.setattr(mask_scorer, "STEPS", 5)
    monkeypatch.setattr(mask_scorer, "MIN_AGREEMENT", -1.0)
    work, out = tmp_path / "work", tmp_path / "scorer.safetensors"
    arguments = ["--photographs", str(photographs), "--work", str(work), "--out", str(out)]
    main(arguments)
    trained, watched = (
        [image.path.name for image in read_folder(photographs, held_out=side, split="train")]
        for side in (False, True)
    )
    assert trained
    assert watched
    assert set(made) == {*trained, *watched}
    assert not set(made) & of_val
    np.testing.assert_array_equal(
        taught[0].features, np.concatenate([made[name].features for name in trained])
    )
    np.testing.assert_array_equal(
        taught[0].ious, np.concatenate([made[name].ious for name in trained])
    )
    first = read_safetensors(out)
    assert first["mean"].shape == (NUM_FEATURES,)

    again = trained[0]
    (gone,) = work.glob(f"{Path(again).stem}-*.npz")
    gone.unlink()  # as if killed before it was whole
    made.clear()
    main(arguments)
    assert list(made) == [again]
    assert all((tensor == first[name]).all() for name, tensor in read_safetensors(out).items())
