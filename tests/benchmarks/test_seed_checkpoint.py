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
    with (tmp_path / "stopped/log.jsonl").open("a") as log:  # as far as it came after its state
        log.write('{"phase": "wider", "step": 2, "seconds": 0}\n')
    with caplog.at_level("INFO"):
        stopped = train("stopped")
    assert "wider: resumed at step 1" in caplog.messages
    assert stops == []
    found, expected = load_checkpoint(stopped), load_checkpoint(whole)
    assert found.sha256 == expected.sha256
    assert expected.lineage is not None
    assert expected.lineage.steps == 6
    losses, figures = False, True
    assert logged(tmp_path / "whole") == logged(tmp_path / "stopped")
    assert logged(tmp_path / "whole") == [
        ("encoder", 2, losses),
        ("joint", 2, losses),
        ("joint", 2, figures),
        ("wider", 2, losses),
        ("wider", 2, figures),
    ]


def logged(work: Path) -> list[tuple[str, int, bool]]:
    """Phase and step of all lines, and whether they tell of held-out images."""
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    return [(line["phase"], line["step"], "photographs0_5" in line) for line in lines]


def test_what_another_config_or_seed_began_is_not_gone_on_with(
    photographs: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    arguments = ["--photographs", str(photographs), "--work", str(tmp_path / "work")]
    arguments += ["--config", str(config), "--stop-after", "encoder"]
    config.write_text(yaml.safe_dump(tiny_config()))
    main(arguments)
    with pytest.raises(SystemExit, match="encoder alone: there is no checkpoint"):
        main([*arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="begun with another config or seed"):
        main([*arguments, "--seed", "1"])
    config.write_text(yaml.safe_dump(tiny_config(scenes=5)))
    with pytest.raises(SystemExit, match="begun with another config or seed"):
        main(arguments)


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


ENCODER, JOINT, WIDER = tiny_config()["phases"]


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([JOINT, WIDER], "the first phase, joint, has to train"),
        ([ENCODER, ENCODER], "two phases have one name"),
        ([ENCODER | {"joint": JOINT["joint"]}], "either `encoder` or `joint`"),
        (
            [ENCODER, JOINT, ENCODER | {"name": "again"}],
            "only the first phase trains",
        ),
        ([ENCODER, WIDER], "wider has to have the last_window of encoder"),
        ([ENCODER, JOINT | {"begins_with": 2}], "joint averages more joint phases than there are"),
        ([ENCODER, JOINT, WIDER | {"ends_with": 3}], "wider averages more joint phases"),
        ([ENCODER, JOINT, WIDER | {"ends_with": 2}], "wider averages phases of different"),
    ],
)
def test_phases_that_cannot_follow_each_other_are_refused(
    phases: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        SeedConfig.model_validate(tiny_config(phases=phases))
