"""What suits a checkpoint when nobody says: our own, and those that runs train from it, are small,
and answer as the config that was made for ours has it; others answer as the official code does."""

from engine.config import EngineConfig, load_config
from model.checkpoint import CHECKPOINTS_DIR, CONFIG, Checkpoint, load_checkpoint, read_json
from model.sam import SamConfig
from stages.fully_automatic import Preset

CALIBRATED = "photographs"
"""The shipped config whose thresholds are those of the shipped checkpoint."""
TRAINED_FURTHER = ("rescore=false", "pred_iou_thresh=0.375")
"""What a run has trained may be for other pictures than photographs, all that the scorer of masks
knows."""


def suited_preset(checkpoint: Checkpoint) -> tuple[str, tuple[str, ...]]:
    """The preset of automatic masks, and settings: the IoU head of the shipped checkpoint, and of
    those that runs have trained from it, is no official one and would drop everything."""
    calibrated = _calibrated(checkpoint)
    if calibrated is None:
        return Preset.OFFICIAL, ()
    if checkpoint.sha256 != load_checkpoint(calibrated.checkpoint).sha256:
        return CALIBRATED, TRAINED_FURTHER
    return CALIBRATED, ()


def suited_snap(checkpoint: Checkpoint) -> bool:
    """Whether clicks are answered with masks made of superpixels."""
    calibrated = _calibrated(checkpoint)
    return calibrated is not None and calibrated.snap


def _calibrated(checkpoint: Checkpoint) -> EngineConfig | None:
    """The config of checkpoints that have the shape of the shipped one."""
    config = load_config(CALIBRATED)
    shipped = read_json(CHECKPOINTS_DIR / config.checkpoint / CONFIG, SamConfig)
    return config if checkpoint.config == shipped else None
