"""The training of the shipped checkpoint: its phases, and how it is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from benchmarks import seed_checkpoint
from benchmarks.seed_checkpoint import main, mean_weights, save_state
from benchmarks.seed_config import SHIPPED, SeedConfig, load_seed_config
from benchmarks.seed_data import HELD_OUT
from engine.scenes import write_scenes
from model.checkpoint import load_checkpoint

INTERACTIONS = {"num_corrections": 1, "num_repeats": 0, "pixel_loss": "balanced_bce"}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Three phases as the shipped ones are, of two steps each."""
    common = {
        "image_size": 64,
        "batch_images": 1,
        "clicks_per_image": 2,
        "augmentation": {"paste_probability": 0.5, "whole_probability": 0.5},
    }
    joint = {"steps": 2, "warmup_steps": 1, "prompts_per_image": 2, "interactions": INTERACTIONS}
    phases: list[dict[str, Any]] = [
        {"name": "encoder", **common, "encoder": {"steps": 2, "warmup_steps": 1}},
        {"name": "joint", **common, "joint": joint},
        {"name": "wider", **common, "last_window": 32, "joint": joint},
    ]
    small = {"embed_dims": [16, 16, 16, 16], "num_heads": [1, 1, 1, 1], "scenes": 4}
    return {**small, "save_every_steps": 1, "evaluate_every_steps": 2, "phases": phases, **changes}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn ones, half of them for evaluation."""
    directory = tmp_path_factory.mktemp("photographs")
    write_scenes(directory, 3, 8, (60, 80))
    document = json.loads((directory / "instances.json").read_text())
    for image in document["images"]:
        image["split"] = "val" if image["id"] % 2 == 0 else "train"
    (directory / "instances.json").write_text(json.dumps(document))
    return directory


def test_a_training_that_was_stopped_comes_to_the_weights_of_one_that_was_not(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_config()))

    def train(name: str) -> Path:
        out = tmp_path / name / "checkpoint"
        places = ["--work", str(tmp_path / name), "--out", str(out), "--config", str(config)]
        main(["--photographs", str(photographs), *places])
        return out

    whole = train("whole")
    stops = ["wider.pt"]

    def stopping(state: dict[str, object], path: Path) -> None:
        save_state(state, path)
        if path.name in stops:
            stops.remove(path.name)
            raise KeyboardInterrupt

    monkeypatch.setattr(seed_checkpoint, "save_state", stopping)
    with pytest.raises(KeyboardInterrupt):
        train("stopped")
    with caplog.at_level("INFO"):
        stopped = train("stopped")
    assert "wider: resumed at step 1" in caplog.messages
    assert stops == []
    found, expected = load_checkpoint(stopped), load_checkpoint(whole)
    assert found.sha256 == expected.sha256
    assert expected.lineage is not None
    assert expected.lineage.steps == 6
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    ends = [(line["phase"], line["step"], "photographs0_5" in line) for line in lines]
    losses, figures = False, True
    assert ends == [
        ("encoder", 2, losses),
        ("joint", 2, losses),
        ("joint", 2, figures),
        ("wider", 2, losses),
        ("wider", 2, figures),
    ]


def test_weights_are_averaged_and_counters_are_the_last_ones() -> None:
    states = [
        {"weight": torch.tensor([1.0, 4.0]), "batches": torch.tensor(7)},
        {"weight": torch.tensor([3.0, 0.0]), "batches": torch.tensor(9)},
    ]
    mean = mean_weights(states)
    assert mean["weight"].tolist() == [2.0, 2.0]
    assert mean["batches"].item() == 9


def test_what_all_networks_that_ship_hold_out_is_what_the_config_says() -> None:
    config = load_seed_config()
    assert config.held_out == HELD_OUT
    assert yaml.safe_load(SHIPPED.read_text())["held_out"] == {
        "splits": ["val", "test"],
        "hash_share": 0.1,
    }
    shipped = load_checkpoint("sa-tiny")
    assert config.sam(config.phases[-1]) == shipped.config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"phases": tiny_config()["phases"][1:]}, "the first phase, joint, has to train"),
        ({"phases": [tiny_config()["phases"][0]] * 2}, "two phases have one name"),
        (
            {
                "phases": [
                    {**tiny_config()["phases"][0], "joint": tiny_config()["phases"][1]["joint"]}
                ]
            },
            "either `encoder` or `joint`",
        ),
        (
            {
                "phases": [
                    *tiny_config()["phases"][:2],
                    {**tiny_config()["phases"][2], "ends_with": 3},
                ]
            },
            "wider averages more joint phases than there are",
        ),
    ],
)
def test_phases_that_cannot_follow_each_other_are_refused(
    change: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        SeedConfig.model_validate(tiny_config(**change))
