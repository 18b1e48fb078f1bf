"""Three answers to one click."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import tiny_sam
from model.click_scorer import Clicks
from model.transforms import ResizeLongestSide
from stages.click_answers import ALIKE, NUM_OFFERED
from stages.predictor import Pixels, embed
from stages.prompts import centre_click, mask_iou
from stages.snapped_upscale import SnappedUpscale
from stages.superpixels import Superpixels
from stages.zoom_in import predictor_of

SIZE_HW = (240, 320)


def nested() -> tuple[Pixels, np.ndarray, np.ndarray]:
    """A small box on a large one, and both."""
    pixels = np.full((*SIZE_HW, 3), (40, 90, 60), dtype=np.uint8)
    large, small = np.zeros(SIZE_HW, dtype=bool), np.zeros(SIZE_HW, dtype=bool)
    large[30:150, 40:200], small[60:120, 70:130] = True, True
    pixels[large], pixels[small] = (230, 150, 60), (170, 100, 50)
    return pixels, large, small


class Preferring:
    """Stands for the scorer: outputs are worth these, regions those by their order."""

    def __init__(self, outputs: list[float], regions: dict[int, float]) -> None:
        self.outputs, self.regions = outputs, regions

    def __call__(self, known: Clicks) -> tuple[Tensor, Tensor]:
        number = known.areas.shape[1]
        regions = [self.regions.get(at, 0.01) for at in range(number)]
        return torch.tensor([self.outputs]).logit(), torch.tensor([regions]).logit()


def test_regions_around_a_click_are_offered_where_the_model_has_not_made_them() -> None:
    """By the scorer that ships; the model is one of random weights."""
    pixels, large, small = nested()
    sam = tiny_sam()
    predictor = predictor_of(sam, pixels, embed(sam, pixels), zoom_in=False, snap=True)
    for meant in (small, large & ~small):
        answer = predictor.predict((centre_click(meant),), (1,), multimask_output=True)
        assert len(answer.masks) == NUM_OFFERED
        assert max(mask_iou(mask, meant) for mask in answer.masks) > 0.88
        sizes = [int(mask.sum()) for mask in answer.masks]
        assert sizes == sorted(sizes, reverse=True)
        assert any(answer.are_regions)
        for logits, mask in zip(answer.low_res_masks, answer.masks, strict=True):
            seen = predictor.transform.upscale(logits) > 0
            assert logits.shape == answer.low_res_masks[0].shape
            if mask is answer.masks[answer.best] and answer.are_regions[answer.best]:
                assert mask_iou(seen.numpy(), mask) > 0.8


def test_a_click_that_takes_away_or_a_box_is_answered_by_the_model_alone() -> None:
    pixels, _, small = nested()
    sam = tiny_sam()
    predictor = predictor_of(sam, pixels, embed(sam, pixels), zoom_in=False, snap=True)
    place = centre_click(small)
    for answer in (
        predictor.predict((place,), (0,), multimask_output=True),
        predictor.predict((place,), (1,), multimask_output=False),
        predictor.predict(
            (place,), (1,), box_xyxy=(60.0, 50.0, 140.0, 130.0), multimask_output=True
        ),
    ):
        assert not any(answer.are_regions)


def offered(
    monkeypatch: pytest.MonkeyPatch, scorer: Preferring, logits: Tensor
) -> tuple[tuple[int | None, ...], list[float], list[float]]:
    monkeypatch.setattr("stages.click_answers.shipped_click_scorer", lambda: scorer)
    pixels, _, _ = nested()
    upscale = SnappedUpscale(ResizeLongestSide(SIZE_HW, 256), Superpixels(pixels))
    head = np.array([0.5, 0.5, 0.5], dtype=np.float32)
    found = upscale.offered(logits, head, threshold=0.0, click_xy=(100.0, 90.0))
    scores = found.scores
    return found.outputs, scores.predicted_iou.round(3).tolist(), scores.stability.tolist()


def blobs(*radii: float) -> Tensor:
    """Discs around the small box, in cells of 5 pixels."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    distance = torch.hypot(rows - 18.0, columns - 20.0)
    return torch.stack([(radius - distance) / 2 for radius in radii])


def test_what_is_offered_is_unlike_each_other_and_the_largest_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, same, everything = blobs(6, 6.5, 200)
    logits = torch.stack((small, same, everything))
    outputs, worth, stability = offered(monkeypatch, Preferring([0.9, 0.8, 0.3], {}), logits)
    assert outputs[0] in (2, None)  # the whole image, which is a region, too
    assert 0 in outputs
    assert 1 not in outputs
    assert worth[outputs.index(0)] == pytest.approx(0.9)
    assert all(0 <= value <= 1 for value in stability)
    assert ALIKE < 1


def test_an_output_without_a_pixel_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.full((64, 64), -9.0)
    logits = torch.stack((nothing, nothing, nothing))
    outputs, worth, _ = offered(monkeypatch, Preferring([0.9, 0.9, 0.9], {0: 0.2}), logits)
    assert len(outputs) == NUM_OFFERED
    assert outputs[0] is None
    assert max(worth) == pytest.approx(0.2)


def test_where_all_that_may_be_meant_is_alike_three_are_offered_all_the_same() -> None:
    pixels = np.full((*SIZE_HW, 3), 90, dtype=np.uint8)
    sam = tiny_sam()
    predictor = predictor_of(sam, pixels, embed(sam, pixels), zoom_in=False, snap=True)
    answer = predictor.predict(((10.0, 10.0),), (1,), multimask_output=True)
    assert len(answer.masks) == NUM_OFFERED
    assert answer.masks[0].all()
