"""The training of the scorer of clicks."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import click_scorer, seed_data
from benchmarks.click_scorer import (
    TaughtClicks,
    crops_around,
    figures,
    filled_up,
    ious_with,
    main,
    places_in,
    taught_clicks,
    together,
    train,
)
from benchmarks.seed_config import HeldOut
from benchmarks.seed_data import LabelledImage, read_folder
from fakes import OneAfterAnother, rectangle, split_scenes, tiny_sam
from model.checkpoint import read_safetensors
from model.click_scorer import NUM_FACTS, NUM_LOOKS, Clicks, ClickScorer
from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.predictor import Pixels
from stages.prompts import centre_click
from stages.rle import Mask
from stages.superpixels import Superpixels
from stages.unions import MOST_AROUND
from stages.zoom_in import CROP_SHARE


def clicks_told_by_depth(seed: int, number: int = 1500) -> TaughtClicks:
    """Of three regions that one is meant in which the click is deepest; outputs are the same."""
    generator = torch.Generator().manual_seed(seed)
    areas = torch.tensor([900.0, 300.0, 100.0]).repeat(number, 1)
    looks = torch.rand(number, 3, NUM_LOOKS, generator=generator)
    meant = looks[..., 0].argmax(dim=1)
    nested = torch.tensor([[1, 1 / 3, 1 / 9], [1 / 3, 1, 1 / 3], [1 / 9, 1 / 3, 1]])
    facts = torch.rand(number, 3, NUM_FACTS, generator=generator)
    ious = nested.repeat(number, 1, 1)
    clicks = Clicks(looks, areas, facts, ious)
    return TaughtClicks(clicks, nested[meant], nested[meant], torch.ones(number))


def test_which_region_is_meant_is_learnt() -> None:
    watched = clicks_told_by_depth(1)
    scorer = train(clicks_told_by_depth(0), 500)
    found = figures(scorer, watched)
    assert found["held_out_error_of_outputs"] < 0.1
    assert found["held_out_iou_of_best"] > 0.9
    untaught = figures(ClickScorer().eval(), watched)
    assert untaught["held_out_error_of_outputs"] > 0.3
    assert untaught["held_out_iou_of_best"] < 0.8


def test_places_lie_in_their_region_the_first_in_its_middle() -> None:
    ring = rectangle((60, 80), 5, 10, 55, 70) & ~rectangle((60, 80), 10, 15, 40, 65)
    rng = np.random.default_rng(0)
    for _ in range(20):
        places = places_in(ring, rng)
        assert len(places) == len(click_scorer.PLACES)
        assert places[0] == centre_click(ring)
        assert all(ring[int(y), int(x)] for x, y in places)
        assert 42 <= places[1][1] <= 52  # the thick part is its inner half


def test_crops_are_taken_around_regions_that_they_show() -> None:
    whole = ResizeLongestSide((300, 300), 128)
    large, *small = (
        rectangle((300, 300), *box)
        for box in ((0, 0, 300, 250), (10, 10, 40, 40), (200, 200, 220, 260), (90, 5, 120, 20))
    )
    views = list(crops_around([large, *small], whole))
    for view, region in zip(views, small[: click_scorer.CROPS], strict=True):
        assert view.transform.size_hw_orig == (100, 100)
        assert view.fits(region)
    assert list(crops_around([large], whole)) == []


def test_masks_are_compared_with_what_is_meant_in_the_superpixels_frame() -> None:
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:, 40:] = 200
    superpixels = Superpixels(pixels)
    everything = np.ones((len(superpixels.areas), 1), dtype=bool)
    nothing = ~everything
    left = rectangle((60, 80), 0, 0, 60, 40)
    found = ious_with(left, superpixels, np.concatenate((everything, nothing), axis=1))
    assert found.tolist() == pytest.approx([0.5, 0])


def test_clicks_of_few_regions_are_filled_up_with_none() -> None:
    known = Clicks(
        torch.ones(1, 2, NUM_LOOKS),
        torch.tensor([[9.0, 4.0]]),
        torch.ones(1, 3, NUM_FACTS),
        torch.ones(1, 2, 3),
    )
    row = filled_up(known, np.array([0.1, 0.2, 0.3, 0.4, 0.5]), 2)
    assert row["areas"].tolist() == [9, 4, *[0] * (MOST_AROUND - 2)]
    assert row["looks"].shape == (MOST_AROUND, NUM_LOOKS)
    assert row["of_outputs"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert row["of_regions"][:3].tolist() == pytest.approx([0.4, 0.5, 0])
    none = together([{}, {name: values[None] for name, values in row.items()}])
    assert none.of_outputs.shape == (1, 3)


def test_a_photograph_and_crops_of_it_are_taught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, _ = split_scenes(tmp_path)
    image = read_folder(photographs, held_out=False, split="train")[0]
    told: list[tuple[tuple[int, ...], set[tuple[int, ...]]]] = []

    def listening(
        _sam: Sam, pixels: Pixels, regions: Sequence[Mask], _rng: np.random.Generator
    ) -> list[dict[str, np.ndarray]]:
        told.append((pixels.shape[:2], {region.shape for region in regions}))
        return [{"share": np.float32(len(told))}]

    monkeypatch.setattr(click_scorer, "rows_of", listening)
    found = taught_clicks(tiny_sam(), image)
    (size_hw, _), *crops = told
    assert len(crops) == click_scorer.CROPS
    side = round(max(size_hw) * CROP_SHARE)
    assert told == [(size_hw, {size_hw}), *[((side, side), {(side, side)})] * len(crops)]
    assert found["share"].tolist() == [1, 2, 3]


def test_clicks_of_the_training_side_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs, of_val = split_scenes(tmp_path)
    made: list[str] = []

    @cache
    def of_any() -> dict[str, np.ndarray]:
        """What is taught of one of the images; that each has its own takes a minute more."""
        return taught_clicks(tiny_sam(), read_folder(photographs, held_out=False, split="train")[0])

    def recorded(_sam: object, image: LabelledImage) -> dict[str, np.ndarray]:
        made.append(image.path.name)
        return of_any()

    monkeypatch.setattr(click_scorer, "sam_of", lambda _checkpoint: None)
    monkeypatch.setattr(click_scorer, "taught_clicks", recorded)
    monkeypatch.setattr(click_scorer, "ProcessPoolExecutor", OneAfterAnother)
    monkeypatch.setattr(click_scorer, "MOST_REGIONS", 1)
    monkeypatch.setattr(click_scorer, "CROPS", 1)
    monkeypatch.setattr(click_scorer, "MOST_IN_CROP", 1)
    monkeypatch.setattr(seed_data, "HELD_OUT", HeldOut(hash_share=0.5))
    work, out = tmp_path / "work", tmp_path / "scorer.safetensors"
    arguments = ["--photographs", str(photographs), "--work", str(work), "--out", str(out)]
    arguments += ["--steps", "5"]
    main(arguments)
    trained, watched = (
        [image.path.name for image in read_folder(photographs, held_out=side, split="train")]
        for side in (False, True)
    )
    assert trained
    assert watched
    assert made == [*trained, *watched]
    assert not set(made) & of_val
    first = read_safetensors(out)
    made.clear()
    (gone,) = work.glob(f"{Path(trained[0]).stem}-*.npz")
    gone.unlink()  # as if killed before it was whole
    main(arguments)
    assert made == [trained[0]]
    assert all((tensor == first[name]).all() for name, tensor in read_safetensors(out).items())
