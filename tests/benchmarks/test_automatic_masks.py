"""Generators of masks are compared, at a tiny size."""

import json
from pathlib import Path

import pytest

from benchmarks import automatic_masks
from benchmarks.mask_task import FoundMask, Made
from fakes import noise_and_model, rectangle
from stages.rle import Mask, encode_rle


def made(*masks: Mask, seconds: float = 1.0) -> Made:
    found = [
        FoundMask(
            size_hw=rle.size, counts=rle.counts, predicted_iou=0.9 - 0.1 * i, stability_score=0.95
        )
        for i, rle in enumerate(map(encode_rle, masks))
    ]
    return Made(seconds=seconds, peak_mb=1, masks=found)


def test_masks_agree_when_each_has_one_of_the_other_side() -> None:
    square, bar, corner = (
        rectangle((40, 60), *box) for box in ((0, 0, 20, 20), (30, 0, 34, 60), (20, 40, 29, 50))
    )
    slightly_larger = rectangle((40, 60), 0, 0, 20, 21)
    ours, theirs = made(bar, slightly_larger), made(square, bar, corner)
    strict = automatic_masks.agreement(ours, theirs, 0.99)
    assert (strict.found, strict.right) == (1 / 3, 1 / 2)
    lenient = automatic_masks.agreement(ours, theirs, 0.9)
    assert (lenient.found, lenient.right) == (2 / 3, 1)
    assert lenient.predicted_iou == pytest.approx(0.1)
    assert automatic_masks.agreement(made(), theirs, 0.5).found == 0
    assert automatic_masks.agreement(made(), made(), 0.5).found == 1


def test_generators_of_masks_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = noise_and_model(tmp_path)
    arguments += ["--cases", "grid", "--generators", "fp32", "bf16", "--points", "6"]
    arguments += ["--pred-iou-thresh", "-9", "--stability-score-thresh", "0", "--threads", "1"]
    automatic_masks.main(arguments)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["generator"] for line in lines] == ["fp32", "bf16"]
    for line in lines:
        assert line["masks"] > 0
        for stage in ("encode", "prepare", "prompts to IoU", "masks"):
            assert line["stages"][stage]["floor_seconds"] > 0
        seconds = {name: cost["seconds"] for name, cost in line["stages"].items()}
        assert min(seconds.values()) >= 0
        told = sum(seconds.values()) - seconds["read"]
        assert line["seconds"] / 5 < told < line["seconds"] * 5  # two runs of a machine with others
    assert lines[1]["beside_fp32"]["agreement"]["0.5"]["found"] > 0
