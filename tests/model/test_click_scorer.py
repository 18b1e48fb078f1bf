from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import click_scorer
from model.click_scorer import NUM_FACTS, NUM_LOOKS, Clicks, ClickScorer, shipped_click_scorer


def clicks(areas: list[float], *, seed: int = 0) -> Clicks:
    """One click, on so many regions one within the other, and three outputs."""
    generator = torch.Generator().manual_seed(seed)
    looks = torch.rand(1, len(areas), NUM_LOOKS, generator=generator)
    facts = torch.rand(1, 3, NUM_FACTS, generator=generator)
    ious = torch.rand(1, len(areas), 3, generator=generator)
    return Clicks(looks, torch.tensor([areas]), facts, ious)


def worth(scorer: ClickScorer, known: Clicks) -> Tensor:
    with torch.inference_mode():
        return torch.cat(scorer(known)[:2], dim=1)[0].sigmoid()


def test_regions_that_are_filled_up_change_nothing() -> None:
    scorer, known = shipped_click_scorer(), clicks([900.0, 400.0, 30.0])
    filled = Clicks(
        torch.cat((known.looks, torch.full((1, 2, NUM_LOOKS), 7.0)), dim=1),
        torch.cat((known.areas, torch.zeros(1, 2)), dim=1),
        known.facts,
        torch.cat((known.ious, torch.full((1, 2, 3), 0.5)), dim=1),
    )
    expected = worth(scorer, known)
    assert expected.shape == (6,)
    torch.testing.assert_close(worth(scorer, filled)[:6], expected)


def test_what_is_far_from_all_that_was_taught_still_has_an_iou() -> None:
    known = clicks([1e9, 1e-6])
    strange = known._replace(looks=known.looks * 1e9, facts=known.facts - 1e9)
    found = worth(shipped_click_scorer(), strange)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(("deepest", "area"), [(54.0, 40_000.0), (20.0, 5_000.0)])
def test_a_click_in_the_middle_of_a_region_speaks_for_that_region(
    deepest: float, area: float
) -> None:
    scorer = shipped_click_scorer()
    root, log_share, first_click = area**0.5, np.log(area / 200_000), [0.0, 0.0, 1.0, 1.0]
    facts = scorer.facts_mean.repeat(1, 3, 1).clone()
    facts[0, :, -4:] = torch.tensor(first_click)
    ious = torch.full((1, 1, 3), 0.5)
    found = []
    for depth in (deepest, deepest / 5):
        looks = scorer.looks_mean.repeat(1, 1, 1).clone()
        place = [depth / deepest, np.log(deepest), log_share]
        missed = min(deepest - depth, 10)
        looks[0, 0, :3] = torch.tensor(place)
        looks[0, 0, 6:12] = torch.tensor(
            [deepest / root, missed, log_share, 1, np.log(depth + 1), depth / root]
        )
        looks[0, 0, -4:] = torch.tensor(first_click)
        found.append(worth(scorer, Clicks(looks, torch.tensor([[area]]), facts, ious))[3])
    middle, aside = found
    assert middle > 1.5 * aside


def test_weights_that_were_cut_off_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "click_scorer.safetensors"
    cut.write_bytes(click_scorer.WEIGHTS.read_bytes()[:1000])
    monkeypatch.setattr(click_scorer, "WEIGHTS", cut)
    with pytest.raises(ValueError, match=f"{cut} is damaged or cut off"):
        shipped_click_scorer.__wrapped__()
