"""Which images a second person looks at, and how far two people agree on a mask."""

from collections.abc import Mapping
from hashlib import sha256

from engine.config import EngineConfig
from stages.records import Rle
from stages.rle import rle_iou

_STEPS = 2**64


def is_reviewed(config: EngineConfig, round_index: int, image_id: int) -> bool:
    """Whether an image is of the share that is reviewed: by hash, so always the same ones."""
    text = f"review {config.seed} {round_index} {image_id}"
    place = int.from_bytes(sha256(text.encode()).digest()[:8]) / _STEPS
    return place < config.rounds[round_index].review_share


def mask_ious(before: Mapping[str, Rle], after: Mapping[str, Rle]) -> tuple[float, ...]:
    """Of each mask before with the one of the same id after: 1 when equal, 0 when it is gone."""
    return tuple(
        _iou(mask, after[mask_id]) if mask_id in after else 0.0 for mask_id, mask in before.items()
    )


def _iou(first: Rle, second: Rle) -> float:
    return 1.0 if first == second else float(rle_iou([first], [second])[0, 0])
