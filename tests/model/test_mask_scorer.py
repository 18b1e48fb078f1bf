from pathlib import Path

import numpy as np
import pytest

from model import click_scorer, edge_detector, mask_scorer
from model.mask_scorer import NUM_FEATURES, shipped_mask_scorer
from stages.mask_looks import NUM_LOOKS


def test_what_is_far_from_all_that_was_taught_still_has_an_iou() -> None:
    scorer = shipped_mask_scorer()
    usual = scorer.mean.numpy().astype(np.float64)
    ious = scorer.predicted_iou(np.stack((usual, usual + 1e9, usual - 1e9)))
    assert ious.dtype == np.float32
    assert ((ious > 0) & (ious < 1)).all()
    assert scorer.predicted_iou(np.zeros((0, NUM_FEATURES))).shape == (0,)


def test_a_mask_that_all_agree_on_is_worth_more() -> None:
    scorer = shipped_mask_scorer()
    usual = scorer.mean.numpy().astype(np.float64)
    agreed = usual.copy()
    agreed[NUM_LOOKS:] = 0.95  # with the nearest union, and with each segmentation
    doubted = usual.copy()
    doubted[NUM_LOOKS:] = 0.3
    worth, less = scorer.predicted_iou(np.stack((agreed, doubted)))
    assert worth > less + 0.2


def test_weights_that_were_cut_off_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "mask_scorer.safetensors"
    cut.write_bytes(mask_scorer.WEIGHTS.read_bytes()[:1000])
    monkeypatch.setattr(mask_scorer, "WEIGHTS", cut)
    with pytest.raises(ValueError, match=f"{cut} is damaged or cut off"):
        shipped_mask_scorer.__wrapped__()


def test_all_that_ships_stays_within_25_megabytes() -> None:
    checkpoint = edge_detector.WEIGHTS.parent / "checkpoints" / "sa-tiny" / "model.safetensors"
    files = (checkpoint, *(one.WEIGHTS for one in (edge_detector, mask_scorer, click_scorer)))
    assert sum(file.stat().st_size for file in files) < 25e6
