"""Automatic masks by this project: one image, in a process of its own.

python -m benchmarks.our_masks TASK.json ANSWER.json
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.mask_task import FoundMask, Made, StageCost, Task
from benchmarks.process import peak_mb
from model.checkpoint import load_checkpoint
from model.detector import ObjectDetector, load_detector
from model.factored_decoder import FactoredDecoder
from stages import fully_automatic, semi_automatic
from stages.base import Provenance, Stage
from stages.filters import FilterConfig
from stages.fully_automatic import FullyAutomatic, FullyAutomaticConfig
from stages.predictor import Image
from stages.semi_automatic import SemiAutomatic, SemiAutomaticConfig
from stages.windows import WindowedUpscale

STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "encode": ((fully_automatic, "embed_batch"), (semi_automatic, "embed_batch")),
    "detect": ((ObjectDetector, "predict"),),
    "prepare": ((FactoredDecoder, "__init__"),),
    "prompts to IoU": ((FactoredDecoder, "read"),),
    "masks": ((FactoredDecoder, "masks"),),
    "upsample and score": ((WindowedUpscale, "stability"), (WindowedUpscale, "mask")),
    "NMS": (
        (fully_automatic, "box_nms"),
        (fully_automatic, "drop_duplicates"),
        (semi_automatic, "box_nms"),
    ),
    "RLE": ((fully_automatic, "encode_window"),),
    "small regions": (
        (fully_automatic, "clean_small_regions"),
        (semi_automatic, "clean_small_regions"),
    ),
}
OTHER = "other"
LARGEST_PRODUCT = 2048
"""Rows and columns of the matrices by whose product the speed of this machine is known."""


def main() -> None:
    task = Task.model_validate_json(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task.threads)
    started = time.monotonic()
    with Picture.open(task.image) as file:
        image = Image(0, np.asarray(file.convert("RGB")))
    reading = time.monotonic() - started
    stage = build(task)
    started = time.monotonic()
    output = stage.run(image, np.random.default_rng(0))
    seconds, peak = time.monotonic() - started, peak_mb()
    masks = [
        FoundMask(
            size_hw=mask.segmentation.size,
            counts=mask.segmentation.counts,
            predicted_iou=mask.predicted_iou,
            stability_score=mask.stability_score,
        )
        for mask in output.masks
    ]
    costs = stage_costs(task, lambda: stage.run(image, np.random.default_rng(0)))
    costs = {"read": StageCost(seconds=reading)} | costs
    made = Made(seconds=seconds, peak_mb=peak, masks=masks, stages=costs)
    Path(sys.argv[2]).write_text(made.model_dump_json())


def build(task: Task) -> Stage:
    filters = FilterConfig(
        # The official generator takes 0 for no threshold at all.
        pred_iou_thresh=task.pred_iou_thresh or -np.inf,
        stability_score_thresh=task.stability_score_thresh,
        stability_score_offset=task.stability_score_offset,
        box_nms_thresh=task.box_nms_thresh,
        min_mask_region_area=task.min_mask_region_area,
        # As the official generator does.
        max_mask_area_fraction=None,
        drop_small_masks=False,
    )
    sam = load_checkpoint(task.checkpoint).sam.eval()
    provenance = Provenance(round=0, checkpoint=task.checkpoint)
    if task.generator == "detector":
        assert task.detector is not None
        # As many boxes as it has: those that are no objects fall to the filters.
        config = SemiAutomaticConfig(detector_score_thresh=0.02, filters=filters)
        return SemiAutomatic(sam, load_detector(task.detector).eval(), config, provenance)
    return FullyAutomatic(
        sam,
        FullyAutomaticConfig(
            points_per_side=task.points_per_side,
            crop_n_layers=task.crop_n_layers,
            precision="bf16" if task.generator == "bf16" else "fp32",
            filters=filters,
        ),
        provenance,
    )


COUNTER = FlopCounterMode(display=False)


def stage_costs(task: Task, again: Callable[[], object]) -> dict[str, StageCost]:
    """Where the seconds go on one thread, since several work on different stages at a time.

    Counting slows the work down, so it is done twice more.
    """
    torch.set_num_threads(1)
    costs = {name: StageCost() for name in STAGES}
    for name, places in STAGES.items():
        for owner, function in places:
            watch(owner, function, costs[name])
    started = time.monotonic()
    again()
    seconds = time.monotonic() - started
    spent = {name: cost.seconds for name, cost in costs.items()}
    with COUNTER:
        again()
    exact = product_speed(torch.float32)
    for name, cost in costs.items():
        half = name == "encode" and task.generator == "bf16"
        cost.seconds = spent[name]
        cost.floor_seconds /= product_speed(torch.bfloat16) if half else exact
    return costs | {OTHER: StageCost(seconds=seconds - sum(spent.values()))}


def watch(owner: Any, function: str, cost: StageCost) -> None:
    """Add the seconds of every call; where FLOPs are counted, those as well."""
    inner = getattr(owner, function)

    def timed(*arguments: Any, **keywords: Any) -> Any:
        flops = COUNTER.get_total_flops()
        started = time.monotonic()
        try:
            return inner(*arguments, **keywords)
        finally:
            cost.seconds += time.monotonic() - started
            cost.floor_seconds += COUNTER.get_total_flops() - flops

    setattr(owner, function, timed)


def product_speed(dtype: torch.dtype) -> float:
    """FLOP a second of a matrix product, best of a few, as large as takes less than a second: a
    processor without bf16 takes minutes for the largest."""
    side = 256
    while True:
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        best = np.inf
        for _ in range(8):
            started = time.monotonic()
            torch.mm(a, b)
            best = min(best, time.monotonic() - started)
        if side == LARGEST_PRODUCT or 8 * best > 1:
            return float(2 * side**3 / best)
        side *= 2


if __name__ == "__main__":
    main()
