import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import ColourSam, rectangle, tiny_sam
from model.click_scorer import NUM_FACTS, ClickScorer
from model.click_scorer import NUM_LOOKS as NUM_LOOKS_OF_UNIONS
from model.mask_scorer import NUM_FEATURES, MaskScorer
from model.transforms import ResizeLongestSide
from stages.filters import mask_box
from stages.mask_looks import NUM_LOOKS
from stages.predictor import Pixels, Predictor, embed
from stages.prompts import mask_iou
from stages.region_tree import RegionTree
from stages.rle import Mask, encode_rle
from stages.snapped_upscale import SnappedUpscale
from stages.superpixels import CORRECTABLE, SIDE, UNCORRECTED, Cuts, Segmentation, Superpixels
from stages.unions import Unions, Values
from stages.windows import Window
from stages.zoom_in import predictor_of

PAGE_GOLDEN = Path(__file__).parents[2] / "web/ui/tests/snapped_upscale.golden.json"
SIZE_HW = (320, 512)
BOX = rectangle(SIZE_HW, 70, 130, 215, 330)


def painted(size_hw: tuple[int, int] = SIZE_HW, seed: int = 0) -> Pixels:
    """A box of one colour on another, with a little noise."""
    height, width = size_hw
    pixels = np.full((height, width, 3), (40, 90, 60), dtype=np.int16)
    pixels[height * 70 // 320 : height * 215 // 320, width * 130 // 512 : width * 330 // 512] = (
        200,
        120,
        60,
    )
    noise = np.random.default_rng(seed).integers(-4, 5, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def colourful(size_hw: tuple[int, int], seed: int = 0) -> Pixels:
    """Many patches of random colours: segmentations of different scales differ on them."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(1, 3, 12, 15, generator=generator) * 255
    return (
        F.interpolate(patches, size_hw, mode="bicubic")
        .clamp(0, 255)[0]
        .permute(1, 2, 0)
        .byte()
        .numpy()
    )


def blob(centre_yx: tuple[float, float], radius: float, side: int = 64) -> Tensor:
    """Logits of a disc, in cells."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = torch.hypot((rows - centre_yx[0]).float(), (columns - centre_yx[1]).float())
    return (radius - distance) / 2


def upscale_of(pixels: Pixels, image_size: int = 256) -> SnappedUpscale:
    transform = ResizeLongestSide(pixels.shape[:2], image_size)  # type: ignore[arg-type]
    return SnappedUpscale(transform, Superpixels(pixels))


def agreement_of(upscale: SnappedUpscale, logits: Tensor) -> Values:
    head = np.ones(len(logits), dtype=np.float32)
    return upscale.scores(logits, head, threshold=0.0, offset=1.0).stability


def drawn(upscale: SnappedUpscale, logits: Tensor, size_hw: tuple[int, int]) -> Mask:
    return filled(upscale.mask(logits, threshold=0.0), size_hw)


def filled(window: Window | None, size_hw: tuple[int, int]) -> Mask:
    mask = np.zeros(size_hw, dtype=bool)
    if window is not None:
        (x, y), (h, w) = window.offset_xy, window.mask.shape
        mask[y : y + h, x : x + w] = window.mask
        assert all(window.mask.any(axis=axis)[[0, -1]].all() for axis in (0, 1))
    return mask


def test_a_rough_answer_ends_where_the_colour_ends() -> None:
    rough = blob((18, 29), 10)  # cells of 8 pixels
    transform = ResizeLongestSide(SIZE_HW, 256)
    assert mask_iou((transform.upscale(rough) > 0).numpy(), BOX) < 0.8
    snapped = drawn(upscale_of(painted()), rough, SIZE_HW)
    assert mask_iou(snapped, BOX) > 0.95  # its outermost pixels may be superpixels of their own


def test_means_are_those_of_the_enlarged_answer_over_every_superpixel() -> None:
    pixels = colourful((300, 400))
    transform = ResizeLongestSide((300, 400), 256)
    superpixels = Superpixels(pixels)
    upscale = SnappedUpscale(transform, superpixels)
    logits = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    logits = F.avg_pool2d(logits[:, None], 9, 1, 4)[:, 0] * 20

    chances = logits.sigmoid()[:, None] - 0.5
    seen = F.interpolate(chances, (256, 256), mode="bilinear")[:, :, :192, :256]
    work = F.interpolate(seen, superpixels.atoms.shape, mode="bilinear")[:, 0].double().numpy()
    labels = superpixels.atoms.ravel()
    plain = []
    for answer in work:
        levels = []
        of_atoms = np.bincount(labels, answer.ravel()) / np.bincount(labels)
        for segmentation in superpixels.segmentations:
            levels.append(segmentation.smoothed(of_atoms[:, None])[labels, 0])
        together = np.mean(levels, axis=0) > 0
        agreement = np.mean([mask_iou(level > 0, together) for level in levels])
        finest = superpixels.segmentations[0].members[labels]
        agreement *= max(
            mask_iou((first <= finest) & (finest < end), together)
            for first, end in superpixels.unions.runs
        )
        plain.append((together.reshape(superpixels.atoms.shape), agreement))

    stability = agreement_of(upscale, logits)
    assert stability == pytest.approx([agreement for _, agreement in plain], abs=1e-3)
    assert len(set(stability.round(3))) == 3
    for one, (expected, _) in zip(logits, plain, strict=True):
        mask = drawn(upscale, one, (300, 400))
        assert 0.1 < mask.mean() < 0.9
        enlarged = F.interpolate(
            torch.from_numpy(expected)[None, None].float(), (300, 400), mode="bilinear"
        )
        assert mask_iou(mask, (enlarged[0, 0] > 0.5).numpy()) > 0.99


@pytest.mark.parametrize("cuts", [CORRECTABLE, UNCORRECTED])
def test_a_superpixel_has_the_mean_of_its_atoms_by_their_area(cuts: Cuts) -> None:
    superpixels = Superpixels(colourful((200, 300)), cuts)
    values = np.random.default_rng(0).normal(size=(len(superpixels.areas), 2))
    assert len(superpixels.segmentations) == len(cuts.edges) + len(cuts.colours)
    for segmentation in superpixels.segmentations:
        smoothed = segmentation.smoothed(values)
        assert superpixels.areas @ smoothed == pytest.approx(superpixels.areas @ values)
        assert segmentation.smoothed(smoothed) == pytest.approx(smoothed)
        assert len(np.unique(smoothed[:, 0].round(9))) < len(values)


def test_all_that_one_colour_fills_is_agreed_upon_and_nothing_has_no_score() -> None:
    upscale = upscale_of(painted())
    answers = torch.stack([blob((18, 29), 10), torch.full((64, 64), -5.0)])
    box, nothing = agreement_of(upscale, answers)
    assert box > 0.9
    assert np.isnan(nothing)
    assert upscale.mask(answers[1], threshold=0.0) is None
    head = np.array([0.8, 0.6, -0.1], dtype=np.float32)
    worth = upscale.weighed(head, np.array([0.2, np.nan, 1]))
    assert worth.tolist() == pytest.approx([0.4, 0, 0])


@pytest.mark.parametrize("cuts", [CORRECTABLE, UNCORRECTED])
def test_what_cannot_reach_a_threshold_is_known_by_the_head_alone(cuts: Cuts) -> None:
    upscale = SnappedUpscale(ResizeLongestSide((60, 80), 256), Superpixels(painted((60, 80)), cuts))
    least = upscale.least_of_head(0.3)
    head = np.array([least, least, 1, 1.5], dtype=np.float32)
    worth = upscale.weighed(head, np.array([1, 0.9, 1, 1]))
    assert worth[0] == pytest.approx(0.3)
    assert worth[1] == pytest.approx(0.3 * 0.9 ** (1 - cuts.trust_in_head))
    assert worth[2:].tolist() == [1, 1]
    assert upscale.least_of_head(-0.1) == -np.inf


def tiles(size_hw: tuple[int, int]) -> Superpixels:
    """As `tiles` in web/ui/tests/snapped_upscale.test.ts: each alone, three in a row, two in a
    column; as unions each alone, and all rows down to each."""
    height, width = ResizeLongestSide(size_hw, SIDE).size_hw_input
    y, x = np.indices((height, width))
    across = width // 7 + 1
    superpixels = Superpixels.__new__(Superpixels)
    superpixels.size_hw, superpixels.trust_in_head, superpixels.scorer = size_hw, 1 / 2, None
    superpixels.atoms = y // 9 * across + x // 7
    superpixels.areas = np.bincount(superpixels.atoms.ravel()).astype(np.float64)
    each = np.arange(len(superpixels.areas))
    superpixels.segmentations = tuple(
        Segmentation(members, superpixels.areas)
        for members in (each, each // 3, each % across + each // across // 2 * across)
    )
    ends = (each[: len(each) // across] + 1) * across
    nodes = [np.stack((each, each + 1), axis=1), np.stack((0 * ends, ends), axis=1)]
    borders = 0.5 + 0.4 * np.sin(each[1:])
    tree = RegionTree(superpixels.atoms, np.concatenate(nodes), borders)
    superpixels.unions = Unions(tree, each, superpixels.areas)
    return superpixels


def page_logits(name: str, side: int) -> Tensor:
    i, j = np.indices((side, side))
    logits = {
        "waves": 3 * (np.sin(i * 0.9 + 0.3) * np.cos(j * 0.7) + 0.4 * np.sin(i * j * 0.31)) - 1.2,
        "blob": side / 5 - np.hypot(i - side * 0.3, j - side * 0.4),
        "stripes": 3 * np.sin(j * 0.37 + 0.2),
        "nothing": np.full((side, side), -9),
    }[name]
    return torch.from_numpy(logits.astype(np.float32))


@pytest.mark.parametrize("expected", json.loads(PAGE_GOLDEN.read_text()), ids=lambda e: e["logits"])
def test_the_page_is_tested_against_masks_made_here(expected: dict[str, Any]) -> None:
    size_hw, image_size = (expected["height"], expected["width"]), expected["imageSize"]
    upscale = SnappedUpscale(ResizeLongestSide(size_hw, image_size), tiles(size_hw))
    side = image_size // 4
    answer = page_logits(expected["logits"], side)
    assert encode_rle(drawn(upscale, answer, size_hw)).counts == expected["counts"]
    head = np.array([0.7], np.float32)
    stability, worth = upscale.scores(answer[None], head, threshold=0.0, offset=1.0)
    assert stability.tolist() == pytest.approx([expected["stability"]])
    assert worth.tolist() == pytest.approx([expected["predictedIou"]])


@pytest.mark.parametrize(
    "expected", [one for one in json.loads(PAGE_GOLDEN.read_text()) if "offered" in one]
)
def test_the_page_is_tested_against_offers_made_here(
    expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.click_answers.shipped_click_scorer", waving_scorer)
    size_hw, image_size = (expected["height"], expected["width"]), expected["imageSize"]
    for mine, one in zip(page_offers(size_hw, image_size), expected["offered"], strict=True):
        assert (mine["counts"], mine["output"]) == (one["counts"], one["output"])
        assert mine["stability"] == pytest.approx(one["stability"])
        assert mine["predictedIou"] == pytest.approx(one["predictedIou"], abs=1e-5)


def waving_scorer() -> ClickScorer:
    """As `wavingScorer` in web/ui/tests/scorers.ts."""
    scorer = ClickScorer().eval()
    statistics = 2 * NUM_LOOKS_OF_UNIONS + 2 * NUM_FACTS
    at = 0
    for parameter in scorer.parameters():
        numbers = torch.arange(at, at + parameter.numel(), dtype=torch.float64)
        values = 0.4 * torch.sin(2.3 * numbers) + (numbers < statistics)
        parameter.data.copy_(values.reshape(parameter.shape))
        at += parameter.numel()
    return scorer


def page_offers(size_hw: tuple[int, int], image_size: int) -> list[dict[str, Any]]:
    """By `waving_scorer`, of four outputs on tiles: three for a click, and one for each of two that
    correct a mask, by adding and by taking away."""
    upscale = SnappedUpscale(ResizeLongestSide(size_hw, image_size), tiles(size_hw))
    names = ("blob", "waves", "blob", "nothing")
    answers = torch.stack([page_logits(name, image_size // 4) for name in names])
    head = np.array([0.6, 0.7, 0.5, 0.3], dtype=np.float32)
    height, width = size_hw
    first, second = (width * 0.4 // 1, height * 0.3 // 1), (width * 0.7 // 1, height * 0.6 // 1)
    before = drawn(upscale, page_logits("stripes", image_size // 4), size_hw)
    made = []
    for points, labels, mask in (
        ((first,), (1,), None),
        ((first, second), (1, 1), before),
        ((second, first), (1, 0), before),
    ):
        clicked = upscale.clicked(points, labels, mask)
        candidates = upscale.candidates(answers, head, clicked, threshold=0.0)
        found = upscale.offered(candidates, mask, 3 if mask is None else 1)
        made += [
            {
                "counts": encode_rle(one).counts,
                "stability": float(stability),
                "predictedIou": float(predicted_iou),
                "output": output,
            }
            for one, output, stability, predicted_iou in zip(
                found.masks, found.outputs, *found.scores, strict=True
            )
        ]
    return made


def test_what_a_scorer_says_stands_for_the_word_of_the_head() -> None:
    pixels = colourful((200, 300))
    scorer = MaskScorer().eval()
    transform = ResizeLongestSide((200, 300), 256)
    upscale = SnappedUpscale(transform, Superpixels(pixels, UNCORRECTED, scorer))
    answers = torch.stack([blob((18, 29), 10), blob((24, 40), 14), torch.full((64, 64), -5.0)])
    head = np.array([0.1, 0.9, 0.5], dtype=np.float32)
    stability, worth = upscale.scores(answers, head, threshold=0.0, offset=1.0)
    told, agreement = upscale.features(answers, threshold=0.0)
    assert told.shape == (3, NUM_FEATURES)
    assert np.isfinite(told).all()
    assert worth.tolist() == pytest.approx([*scorer.predicted_iou(told)[:2].tolist(), 0])
    assert np.isnan(stability[2])
    np.testing.assert_array_equal(agreement, stability)
    unions, *segmentations = told[:2, NUM_LOOKS:].T
    assert (unions * np.mean(segmentations, axis=0)).tolist() == pytest.approx(
        agreement[:2].tolist()
    )
    assert upscale.least_of_head(0.3) == -np.inf
    plain = SnappedUpscale(transform, Superpixels(pixels, UNCORRECTED))
    with pytest.raises(ValueError, match="made without a scorer of masks"):
        plain.features(answers, threshold=0.0)
    with pytest.raises(ValueError, match="taught with the cuts UNCORRECTED"):
        Superpixels(pixels, CORRECTABLE, scorer)


def test_superpixels_of_another_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(40, 60\) pixels; expected \(60, 40\)"):
        SnappedUpscale(ResizeLongestSide((60, 40), 256), Superpixels(painted((40, 60))))


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 900), (900, 3), (40, 60), (1500, 2250)])
def test_masks_of_images_of_any_size_fill_them_where_the_answer_does(
    size_hw: tuple[int, int],
) -> None:
    upscale = upscale_of(painted(size_hw))
    assert drawn(upscale, torch.full((64, 64), 5.0), size_hw).all()


def test_a_mask_of_a_large_photograph_is_where_it_is_in_a_small_one() -> None:
    large = (1440, 2304)  # 4.5 times the work frame
    expected = np.kron(BOX, np.ones((9, 9), dtype=bool))[::2, ::2]
    snapped = drawn(upscale_of(painted(large)), blob((18, 29), 10), large)
    assert mask_iou(snapped, expected) > 0.92
    assert mask_box(snapped) == pytest.approx(mask_box(expected), abs=3 * 4.5)  # no shift


def test_a_predictor_that_snaps_gives_the_same_logits_and_other_masks() -> None:
    pixels = painted((SIDE // 2, SIDE // 2))
    sam = tiny_sam()
    embedding = embed(sam, pixels)
    plain, snapping = (
        predictor_of(sam, pixels, embedding, zoom_in=False, snap=snap).predict(
            ((100.0, 100.0), (120.0, 90.0)), (1, 1), multimask_output=True
        )
        for snap in (False, True)
    )
    assert torch.equal(plain.low_res_masks, snapping.low_res_masks)
    worth = np.clip(plain.predicted_iou, 0, None) * np.array(snapping.stability_score)
    assert snapping.predicted_iou == pytest.approx(np.sqrt(worth))
    assert any((a != b).any() for a, b in zip(plain.masks, snapping.masks, strict=True))


def test_a_second_look_snaps_to_the_superpixels_of_its_crop() -> None:
    pixels = np.full((360, 480, 3), 90, dtype=np.uint8)
    rows, columns = np.indices(pixels.shape[:2])
    pebble = np.hypot(columns - 100, rows - 90) <= 11
    pixels[pebble] = (240, 20, 240)
    sam = ColourSam(image_size=128)  # 15 pixels of the image to a cell
    embedding = embed(sam, pixels)  # type: ignore[arg-type]
    far, near = (
        max(
            mask_iou(mask, pebble)
            for mask in predictor_of(sam, pixels, embedding, zoom_in=zoom_in, snap=True)  # type: ignore[arg-type]
            .predict(((100.0, 90.0),), (1,), multimask_output=True)
            .masks
        )
        for zoom_in in (False, True)
    )
    assert near > 0.9
    assert near >= far


def test_a_predictor_without_superpixels_is_not_changed() -> None:
    pixels = painted((120, 160))
    sam = tiny_sam()
    answer = Predictor(sam, (120, 160), embed(sam, pixels)).predict(
        ((80.0, 60.0),), (1,), multimask_output=True
    )
    expected = ResizeLongestSide((120, 160), 128).upscale(answer.low_res_masks) > 0
    assert (np.stack(answer.masks) == expected.numpy()).mean() > 0.9999
