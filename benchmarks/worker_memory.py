"""Peak memory of one worker that annotates a photograph automatically with the `paper` preset.

    python -m benchmarks.worker_memory --image photograph.jpg --models sa-tiny vit_b --points 8 32

Each case is a Ray worker of its own that loads the model, makes one shard of one image, and then
says how much memory it has held at most. Which masks go into the shard:

- `preset`: those that pass the filters of the preset. Untrained weights answer with noise, of which
  none does.
- `best`: about `--keep` of them, those of highest predicted IoU, cleaned up as the preset says.
- `all`: every output of every prompt in every window as it is, the worst there is.

Without `--image` a scene is drawn at 2250x1500. A model is a checkpoint, by name or path, or one of
the presets of SamConfig with random weights. `--points` is `points_per_side`; the paper's 32 takes
minutes per image with a ViT on one core, and memory should not depend on it.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.process import peak_mb
from engine.config import ExecutionConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import CorpusConfig, CorpusRow, scan_image
from engine.executor import Failed, run_all
from engine.layout import CONFIG
from engine.ray_machines import RayMachines
from engine.scenes import draw_scene
from engine.shards import ShardHeader, read_footer
from engine.sources import SourceImage
from engine.worker import ShardUnit
from model.checkpoint import Lineage, save_checkpoint
from model.prompt_encoder import Prompts
from model.sam import PRESETS, Sam, SamConfig
from stages.filters import FilterConfig
from stages.fully_automatic import FullyAutomaticConfig
from stages.predictor import Image as Photograph
from stages.predictor import Predictor, embed
from stages.prompts import point_grid
from stages.records import StageName

Selection = Literal["preset", "best", "all"]

NO_FILTERS = FilterConfig(
    pred_iou_thresh=-np.inf,
    stability_score_thresh=0.0,
    box_nms_thresh=1.0,
    crop_nms_thresh=1.0,
    crop_edge_tolerance=-1,
    max_mask_area_fraction=None,
    min_mask_region_area=0,
)


@dataclass(frozen=True)
class Case:
    model: str
    points_per_side: int
    select: Selection


@dataclass(frozen=True)
class Figures:
    peak_mb: int
    masks: int
    shard_mb: float
    seconds: float


@dataclass(frozen=True)
class MeasuredShard:
    """A shard of one photograph, and the memory it took."""

    row: CorpusRow
    case: Case
    keep: int

    def run(self, context: WorkerContext) -> Figures:
        started = time.monotonic()
        unit = ShardUnit(
            header=ShardHeader(
                stage=StageName.FULLY_AUTOMATIC, round=0, shard=0, checkpoint="", config_sha256=""
            ),
            images=(self.row,),
            shards="shards",
            stage_config=FullyAutomaticConfig(
                points_per_side=self.case.points_per_side, filters=self._filters(context)
            ),
            seed=0,
        )
        unit.run(context)
        return Figures(
            peak_mb=peak_mb(),
            masks=read_footer(context.store, unit.path).num_masks,
            shard_mb=round(len(context.store.read(unit.path)) / 1e6, 2),
            seconds=round(time.monotonic() - started, 1),
        )

    def _filters(self, context: WorkerContext) -> FilterConfig:
        if self.case.select == "preset":
            return FilterConfig()
        if self.case.select == "all":
            return NO_FILTERS
        scores = predicted_ious(context.checkpoint.sam, context.read_image(self.row))
        share = self.keep / num_candidates(self.case.points_per_side)
        return NO_FILTERS.model_copy(
            update={
                "pred_iou_thresh": float(scores.quantile(1 - share)),
                "min_mask_region_area": FilterConfig().min_mask_region_area,
            }
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="a photograph; default: a drawn scene")
    parser.add_argument("--models", nargs="+", default=["sa-tiny", "vit_b"])
    parser.add_argument("--points", type=int, nargs="+", default=[8], help="points_per_side")
    parser.add_argument("--select", nargs="+", choices=get_args(Selection), default=["best"])
    parser.add_argument("--keep", type=int, default=150, help="masks, about, of `best`")
    options = parser.parse_args(arguments)
    for values in product(options.models, options.points, options.select):
        case = Case(*values)
        with TemporaryDirectory(prefix="sa-engine-") as folder:
            figures = measure(case, options.image, options.keep, Path(folder))
        print(json.dumps(asdict(case) | asdict(figures)), flush=True)


def measure(case: Case, image: Path | None, keep: int, folder: Path) -> Figures:
    """In a worker process that has run nothing else."""
    path = (image or draw_photograph(folder)).absolute()
    row = scan_image(SourceImage("photographs", str(path), path.name), 0, CorpusConfig())
    (folder / CONFIG).touch()  # what a worker looks for before it starts
    machines = RayMachines(ExecutionConfig(workers=1))
    executor = machines.executor(WorkerSpec(str(folder), checkpoint_of(case.model, folder)))
    try:
        (outcome,) = run_all(executor, [MeasuredShard(row, case, keep)])
    finally:
        executor.close()
    if isinstance(outcome, Failed):
        raise SystemExit(f"{case} failed: {outcome.error}")
    figures: Figures = outcome.result
    return figures


def draw_photograph(folder: Path) -> Path:
    path = folder / "scene.jpg"
    Image.fromarray(draw_scene(0, 0, (1500, 2250)).pixels).save(path, quality=90)
    return path


def checkpoint_of(model: str, folder: Path) -> str:
    if model not in PRESETS:
        return model
    torch.manual_seed(0)
    save_checkpoint(Sam(SamConfig.preset(model)), folder / model, Lineage())
    return str(folder / model)


def num_candidates(points_per_side: int) -> int:
    """Three outputs of a prompt. Each layer has four times the windows, a quarter of the points."""
    num_layers = FullyAutomaticConfig().crop_n_layers + 1
    return 3 * num_layers * points_per_side**2


def predicted_ious(sam: Sam, image: Photograph) -> Tensor:
    """What the model says of its answers to a coarse grid over the whole image."""
    predictor = Predictor(sam, image.size_hw, embed(sam, image.pixels))
    points = torch.from_numpy(point_grid(8, image.size_hw))[:, None]
    prompts = Prompts(
        point_coords=predictor.transform.apply_coords(points),
        point_labels=torch.ones(points.shape[:2], dtype=torch.int64),
    )
    with torch.inference_mode():
        answer = sam.decode(predictor.embedding, prompts, multimask_output=True)
    return answer.predicted_iou.flatten()


if __name__ == "__main__":
    main()
