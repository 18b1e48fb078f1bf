"""What a generator of automatic masks is asked, and what it answers, between two environments."""

from pathlib import Path

from pydantic import BaseModel


class Task(BaseModel):
    generator: str
    image: Path
    checkpoint: str
    detector: Path | None = None
    threads: int
    points_per_side: int = 32
    crop_n_layers: int = 0
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    min_mask_region_area: int = 0


class FoundMask(BaseModel):
    size_hw: tuple[int, int]
    counts: str
    predicted_iou: float
    stability_score: float | None
    """None where a peer does not say."""


class StageCost(BaseModel):
    """On one thread."""

    seconds: float = 0.0
    floor_seconds: float = 0.0
    """Of its matrix products, at the speed that a large one of that precision has there."""


class Made(BaseModel):
    seconds: float
    """From pixels to RLE; reading the file and the checkpoint come before."""
    peak_mb: int
    """Resident, of the whole process."""
    masks: list[FoundMask]
    stages: dict[str, StageCost] = {}
