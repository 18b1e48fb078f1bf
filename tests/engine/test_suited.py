"""What suits a checkpoint when nobody says."""

from pathlib import Path

from engine.config import load_config
from engine.generate import automatic_config
from engine.suited import suited_preset, suited_snap
from fakes import save_tiny_sam
from model.checkpoint import Lineage, load_checkpoint, save_checkpoint
from stages.fully_automatic import FullyAutomaticConfig, Preset


def test_the_shipped_checkpoint_has_what_it_was_calibrated_with() -> None:
    shipped = load_checkpoint("sa-tiny")
    assert suited_preset(shipped) == ("photographs", ())
    assert suited_snap(shipped)
    assert automatic_config("photographs", []) == load_config("photographs").fully_automatic


def test_what_runs_train_from_it_has_the_same_without_the_scorer_of_masks(tmp_path: Path) -> None:
    shipped = load_checkpoint("sa-tiny")
    save_checkpoint(shipped.sam, tmp_path / "round-01", Lineage(parent=shipped.label, round=1))
    trained = load_checkpoint(tmp_path / "round-01")
    preset, changes = suited_preset(trained)
    assert preset == "photographs"
    assert not automatic_config(preset, changes).rescore
    assert suited_snap(trained)


def test_others_answer_as_the_official_code_does(tmp_path: Path) -> None:
    tiny = load_checkpoint(save_tiny_sam(str(tmp_path / "tiny")))
    assert suited_preset(tiny) == (Preset.OFFICIAL, ())
    assert not suited_snap(tiny)
    assert automatic_config("official", []) == FullyAutomaticConfig.preset(Preset.OFFICIAL)
