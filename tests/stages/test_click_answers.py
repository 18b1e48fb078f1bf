"""Answers to clicks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import rectangle, tiny_sam
from model.checkpoint import load_checkpoint
from model.click_scorer import NUM_FACTS, NUM_LOOKS, Clicks, Worth
from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.click_answers import NUM_OFFERED, Candidates
from stages.predictor import Answer, Pixels, Predictor, embed
from stages.prompts import Point, centre_click, mask_iou
from stages.rle import Mask
from stages.snapped_upscale import SnappedUpscale
from stages.superpixels import Superpixels
from stages.zoom_in import predictor_of

SIZE_HW = (240, 320)
BESIDE = rectangle(SIZE_HW, 170, 240, 225, 300)


def nested() -> tuple[Pixels, Mask, Mask]:
    """A small box on a large one, and both; and one beside them."""
    pixels = np.full((*SIZE_HW, 3), (40, 90, 60), dtype=np.uint8)
    large, small = np.zeros(SIZE_HW, dtype=bool), np.zeros(SIZE_HW, dtype=bool)
    large[30:150, 40:200], small[60:120, 70:130] = True, True
    pixels[large], pixels[small], pixels[BESIDE] = (230, 150, 60), (170, 100, 50), (60, 60, 200)
    return pixels, large, small


class Preferring:
    """Stands for the scorer: outputs are worth these, regions those by their order, the largest
    first; and so likely is each region."""

    def __init__(
        self,
        outputs: list[float],
        regions: dict[int, float],
        chances: dict[int, float] | None = None,
    ) -> None:
        self.outputs, self.regions, self.chances = outputs, regions, chances or {}

    def __call__(self, known: Clicks) -> Worth:
        number = range(known.areas.shape[1])
        regions = [self.regions.get(at, 0.01) for at in number]
        chances = [self.chances.get(at, 0.0) for at in number]
        return Worth(
            torch.tensor([self.outputs]).logit(),
            torch.tensor([regions]).logit(),
            torch.tensor([chances]),
        )


def test_regions_around_a_click_are_offered_where_the_model_has_not_made_them() -> None:
    """By the scorer that ships; the model is one of random weights. Who clicks the large box beside
    the small one may mean it with that or without."""
    predictor, large, small = snapping()
    ring = large & ~small
    for place, meant in ((centre_click(small), (small,)), (centre_click(ring), (ring, large))):
        answer = predictor.predict((place,), (1,), multimask_output=True)
        assert len(answer.masks) == NUM_OFFERED
        assert max(mask_iou(mask, one) for mask in answer.masks for one in meant) > 0.75
        sizes = [int(mask.sum()) for mask in answer.masks]
        assert sizes == sorted(sizes, reverse=True)
        assert any(answer.are_regions)
        for logits, mask in zip(answer.low_res_masks, answer.masks, strict=True):
            seen = predictor.transform.upscale(logits) > 0
            assert logits.shape == answer.low_res_masks[0].shape
            if mask is answer.masks[answer.best] and answer.are_regions[answer.best]:
                assert mask_iou(seen.numpy(), mask) > 0.8


@pytest.mark.parametrize("place", [(0.0, 0.0), (319.0, 0.0), (8.0, 170.0), (250.0, 30.0)])
def test_whatever_is_offered_to_a_first_click_holds_it(place: Point) -> None:
    """Near-duplicates of a better mask do, before any that does not."""
    predictor, _, _ = snapping()
    answer = predictor.predict((place,), (1,), multimask_output=True)
    x, y = map(int, place)
    assert len(answer.masks) == 3
    assert all(mask[y, x] for mask in answer.masks)


def test_a_first_click_that_takes_away_or_a_box_is_answered_by_the_model_alone() -> None:
    predictor, _, small = snapping()
    place = centre_click(small)
    for answer in (
        predictor.predict((place,), (0,), multimask_output=True),
        predictor.predict((place,), (1,), multimask_output=False),
        predictor.predict(
            (place,), (1,), box_xyxy=(60.0, 50.0, 140.0, 130.0), multimask_output=True
        ),
    ):
        assert not any(answer.are_regions)


def snapping(sam: Sam | None = None) -> tuple[Predictor, Mask, Mask]:
    """Of the boxes and a model of random weights, if no other."""
    pixels, large, small = nested()
    sam = sam or tiny_sam()
    return predictor_of(sam, pixels, embed(sam, pixels), zoom_in=False, snap=True), large, small


def corrected(predictor: Predictor, place: Point, label: int, before: Mask) -> Answer:
    return predictor.predict(
        ((100.0, 90.0), place), (1, label), before=before, multimask_output=False
    )


def test_a_further_click_adds_a_region_to_the_mask_before_it_or_takes_it_away() -> None:
    """By the checkpoint and the scorer that ship."""
    predictor, large, small = snapping(load_checkpoint("sa-tiny").sam.eval())
    added = corrected(predictor, centre_click(large & ~small), 1, small | BESIDE)
    assert mask_iou(added.masks[0], large | BESIDE) > 0.95
    taken = corrected(predictor, centre_click(small), 0, large)
    assert mask_iou(taken.masks[0], large & ~small) > 0.95
    for answer in (added, taken):
        assert answer.are_regions == (True,)
        assert 0 < answer.predicted_iou[0] < 1
        assert answer.snapped
        seen = predictor.transform.upscale(answer.low_res_masks[0]) > 0
        assert mask_iou(seen.numpy(), answer.masks[0]) > 0.9


def test_what_is_finer_than_superpixels_is_kept_where_nobody_clicks() -> None:
    predictor, large, small = snapping(load_checkpoint("sa-tiny").sam.eval())
    thread, crack = rectangle(SIZE_HW, 10, 220, 11, 310), rectangle(SIZE_HW, 175, 270, 220, 271)
    before = (small | BESIDE | thread) & ~crack
    added = corrected(predictor, centre_click(large & ~small), 1, before).masks[0]
    assert mask_iou(added, large | BESIDE) > 0.9
    assert added[thread].all()
    assert not added[crack].any()
    taken = corrected(predictor, centre_click(small), 0, large | thread).masks[0]
    assert mask_iou(taken, large & ~small) > 0.9
    assert taken[thread].all()


def test_a_click_is_heeded_where_the_mask_is_finer_than_superpixels() -> None:
    """The atom that is clicked is not mask by the most of its pixels, and so nothing to take."""
    predictor, _, _ = snapping()
    thread = rectangle(SIZE_HW, 10, 220, 14, 310)
    taken = corrected(predictor, (260.0, 11.0), 0, BESIDE | thread).masks[0]
    assert not taken[11, 260]


def test_what_a_scorer_is_told_of_a_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Clicks] = []

    def listening(known: Clicks) -> Worth:
        told.append(known)
        regions = torch.zeros(known.areas.shape)
        return Worth(torch.zeros(known.facts.shape[:2]), regions, regions)

    monkeypatch.setattr("stages.click_answers.shipped_click_scorer", lambda: listening)
    predictor, large, small = snapping()
    ring = large & ~small
    corrected(predictor, centre_click(ring), 0, large)
    looks, areas, facts, ious = (one[0].numpy() for one in told[0])
    assert looks.shape == (len(areas), NUM_LOOKS)
    assert facts.shape == (4, NUM_FACTS)
    assert ious.shape == (len(areas), 4)
    change, share, log_depth, depth_by_root, *in_outputs, unheeded, with_before, label, number = (
        looks[:, 8:].T
    )
    whole = int(np.flatnonzero(areas == 0)[0])  # all is taken away, with the first click
    assert np.exp(change[whole]) == pytest.approx(large.mean(), rel=0.05)
    assert unheeded[whole] == 1
    assert with_before[whole] == 0
    assert share[whole] == pytest.approx(large.mean(), rel=0.05)
    alone = int(np.abs(areas - small.sum() * 512**2 / 320**2).argmin())
    assert unheeded[alone] == 0
    depth = np.exp(log_depth[alone]) - 1  # the click lies in the middle of what that takes away
    assert depth == pytest.approx(35 * 512 / 320, abs=3)
    assert depth_by_root[alone] == pytest.approx(35 / np.sqrt(ring.sum()), rel=0.1)
    assert with_before[alone] == pytest.approx(small.sum() / large.sum(), abs=0.03)
    assert all(((one >= 0) & (one <= 1)).all() for one in in_outputs)
    assert (label == 0).all()
    assert (number == 2).all()
    assert facts[:, 6:10].tolist() == np.eye(4).tolist()


def offered(
    monkeypatch: pytest.MonkeyPatch, scorer: Preferring, logits: Tensor
) -> tuple[tuple[int | None, ...], list[float], list[float]]:
    monkeypatch.setattr("stages.click_answers.shipped_click_scorer", lambda: scorer)
    pixels, _, _ = nested()
    upscale = SnappedUpscale(ResizeLongestSide(SIZE_HW, 256), Superpixels(pixels))
    head = np.array([0.5, 0.5, 0.5], dtype=np.float32)
    clicked = upscale.clicked(((100.0, 90.0),), (1,), None)
    candidates = upscale.candidates(logits, head, clicked, threshold=0.0)
    found = upscale.offered(candidates, None, NUM_OFFERED)
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


def test_what_may_be_meant_and_is_not_met_is_offered_before_what_is_worth_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, worth = torch.stack(tuple(blobs(6, 12, 200))), [0.98, 0.95, 0.2]
    large = {2: 0.02}  # the region, which no output is like
    _, unlikely, _ = offered(monkeypatch, Preferring(worth, large), logits)
    assert sorted(unlikely) == pytest.approx([0.2, 0.95, 0.98])
    _, likely, _ = offered(monkeypatch, Preferring(worth, large, chances={2: 0.6}), logits)
    assert sorted(likely) == pytest.approx([0.02, 0.2, 0.98])


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


def test_how_deep_a_click_lies_in_what_outputs_change() -> None:
    pixels, large, small = nested()
    superpixels = Superpixels(pixels)
    shown = np.stack([large, small, np.zeros_like(large)])
    masks = np.stack([2 * superpixels.pixels_of(mask) > superpixels.areas for mask in shown], 1)
    outputs = superpixels.agreements(masks, superpixels.smoothed(masks - 0.5))
    upscale = SnappedUpscale(ResizeLongestSide(SIZE_HW, 256), superpixels)
    clicked = upscale.clicked((centre_click(large & ~small),), (0,), large)
    known = Candidates(superpixels, outputs, np.ones(3, dtype=np.float32), clicked).known()
    share, log_deepest, missed = known.facts[0, :, 9:12].T.tolist()
    unchanged, of_ring, of_large = range(3)
    assert (share[unchanged], log_deepest[unchanged], missed[unchanged]) == (0, 0, 1)
    assert share[of_ring] == pytest.approx(1, abs=0.05)
    assert np.exp(log_deepest[of_ring]) == pytest.approx(35 * 512 / 320, abs=3)
    assert missed[of_ring] < 3
    assert share[of_large] == pytest.approx(35 / 60, abs=0.05)
    assert missed[of_large] == 10
