"""The shipped configurations load, and the defaults behind them are the paper's numbers.

Section numbers are those of *Segment Anything* (Kirillov et al. 2023) and of its official code.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from engine.config import EngineConfig, load_config, parse_config
from engine.dataset import MixConfig
from engine.images import WorkSize
from model.sam import SamConfig
from model.training import TrainingConfig
from model.transforms import PIXEL_MEAN, PIXEL_STD
from stages.annotator import SimulatedAnnotatorConfig
from stages.assisted_manual import AssistedManualConfig
from stages.evaluation import CLICKS
from stages.filters import FilterConfig
from stages.fully_automatic import FullyAutomaticConfig, Preset
from stages.records import StageName
from stages.semi_automatic import SemiAutomaticConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
EMBEDDED = {"scenes", "skimage"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_loads_by_its_name(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert config == load_config(str(CONFIGS / f"{name}.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_a_run_freezes_is_read_back_the_same(name: str) -> None:
    config = load_config(name)
    frozen = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert parse_config(frozen, "frozen").sha256 == config.sha256


@pytest.mark.parametrize("name", SHIPPED)
def test_training_workers_share_a_batch_evenly(name: str) -> None:
    config = load_config(name)
    assert config.retraining.training.batch_images % config.execution.train_workers == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_learning_rate_falls_before_a_training_ends(name: str) -> None:
    training = load_config(name).retraining.training
    assert training.warmup_steps < min(training.lr_decay_steps)
    assert max(training.lr_decay_steps) < training.steps


def test_demo_goes_through_all_stages_with_nothing_from_outside() -> None:
    config = load_config("demo")
    assert {source.kind for source in config.sources} == EMBEDDED
    assert set(_stages(config)) == set(StageName)
    assert sum(planned.retrain for planned in config.rounds) >= 2


def test_photographs_go_through_all_stages_with_two_retrainings() -> None:
    config = load_config("photographs")
    assert not {source.kind for source in config.sources} & EMBEDDED
    assert set(_stages(config)) == set(StageName)
    assert sum(planned.retrain for planned in config.rounds) >= 2


def test_full_is_the_run_of_the_paper() -> None:
    config = load_config("full")
    images = dict.fromkeys(StageName, 0)
    retrainings = dict.fromkeys(StageName, 0)
    for planned in config.rounds:
        images[planned.stage] += planned.images or 0
        retrainings[planned.stage] += planned.retrain
    assert images == {
        StageName.ASSISTED_MANUAL: 120_000,
        StageName.SEMI_AUTOMATIC: 180_000,
        StageName.FULLY_AUTOMATIC: 11_000_000,
    }
    assert list(retrainings.values()) == [6, 5, 0]
    assert _stages(config) == sorted(_stages(config), key=list(StageName).index)
    assert config.fully_automatic == FullyAutomaticConfig.preset(Preset.PAPER)
    assert config.execution.gpus_per_worker == 1


def test_full_changes_no_number_of_the_method() -> None:
    config = load_config("full")
    defaults = EngineConfig(
        checkpoint=config.checkpoint, sources=config.sources, rounds=config.rounds
    )
    changed = dict(_differences(config, defaults))
    assert {name for name in changed if not name.startswith("execution.")} == {
        "name",
        "corpus.held_out_fraction",
        "images_per_shard",
        "retraining.training.precision",
    }


def test_images_are_worked_on_at_the_size_of_the_release() -> None:  # section 5
    assert WorkSize().max_short_side == 1500
    assert WorkSize().max_long_side is None


def test_stages_have_the_papers_rules() -> None:  # section 4
    assert AssistedManualConfig().max_mask_seconds == 30
    assert SemiAutomaticConfig().max_mask_seconds == 30


def test_simulated_annotator_has_the_clock_of_sam_2() -> None:
    clock = SimulatedAnnotatorConfig()
    assert clock.find_seconds == 1
    assert clock.click_seconds == 1.5
    assert clock.box_seconds == 2 * clock.click_seconds


def test_automatic_masks_are_the_papers() -> None:  # appendix B
    config = FullyAutomaticConfig()
    assert config.points_per_side == 32
    assert config.crop_n_layers == 2
    assert config.crop_n_points_downscale_factor == 2  # 32, 16 and 8 points a side
    assert config.crop_overlap_ratio == 512 / 1500  # of the code


def test_filters_are_the_papers() -> None:  # appendix B
    filters = FilterConfig()
    assert filters.pred_iou_thresh == 0.88
    assert filters.stability_score_thresh == 0.95
    assert filters.stability_score_offset == 1.0
    assert filters.box_nms_thresh == 0.7
    assert filters.crop_nms_thresh == 0.7
    assert filters.crop_edge_tolerance == 20  # of the code
    assert filters.max_mask_area_fraction == 0.95
    assert filters.min_mask_region_area == 100
    assert filters.drop_small_masks


def test_official_preset_is_the_codes() -> None:
    config = FullyAutomaticConfig.preset(Preset.OFFICIAL)
    assert dict(_differences(config, FullyAutomaticConfig())) == {
        "crop_n_layers": 0,
        "crop_n_points_downscale_factor": 1,
        "filters.max_mask_area_fraction": None,
        "filters.min_mask_region_area": 0,
    }


def test_model_is_the_papers() -> None:  # appendix A
    config = SamConfig.preset("vit_h")
    assert config.image_size == 1024
    assert config.embed_dim == 256
    assert config.embedding_size == 64
    assert config.low_res_size == 256
    assert config.decoder_depth == 2
    assert config.num_multimask_outputs == 3
    assert PIXEL_MEAN == (123.675, 116.28, 103.53)
    assert PIXEL_STD == (58.395, 57.12, 57.375)


def test_interactions_are_the_papers() -> None:  # appendix A
    training = TrainingConfig()
    assert training.num_interactions == 11
    assert training.num_corrections == 8
    assert training.num_repeats == 2
    assert training.box_probability == 0.5
    assert training.box_noise_std == 0.1
    assert training.box_noise_max == 20


def test_losses_are_the_papers() -> None:  # appendix A
    training = TrainingConfig()
    assert training.pixel_loss == "focal"
    assert training.pixel_loss_weight == 20
    assert training.dice_loss_weight == 1
    assert training.iou_loss_weight == 1


def test_optimisation_is_the_papers() -> None:  # appendix A
    training = TrainingConfig()
    assert training.betas == (0.9, 0.999)
    assert training.learning_rate == 8e-4
    assert training.warmup_steps == 250
    assert training.steps == 90_000
    assert training.lr_decay_steps == (60_000, 86_666)
    assert training.lr_decay_factor == 0.1
    assert training.weight_decay == 0.1
    assert training.drop_path == 0.4
    assert training.layer_decay == 0.8
    assert training.batch_images == 256
    assert training.masks_per_image == 64
    assert training.max_mask_fraction == 0.9
    assert not training.freeze_image_encoder


def test_stages_are_mixed_as_in_the_papers_ablation() -> None:  # section 7.6
    mix = MixConfig()
    assert (mix.assisted_manual, mix.semi_automatic, mix.fully_automatic) == (10, 10, 1)
    assert mix.scale_jitter == (0.1, 2.0)


def test_evaluation_looks_at_clicks_the_paper_reports() -> None:  # appendix D
    assert set(CLICKS) < {1, 2, 3, 5, 9}


def _stages(config: EngineConfig) -> list[StageName]:
    return [planned.stage for planned in config.rounds]


def _differences(given: Any, default: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(given, BaseModel):
        return [] if given == default else [(path, given)]
    return [
        difference
        for name in type(given).model_fields
        for difference in _differences(
            getattr(given, name), getattr(default, name), f"{path}.{name}" if path else name
        )
    ]
