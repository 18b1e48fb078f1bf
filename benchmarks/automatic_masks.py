"""Automatic masks beside the official generator and transformers' pipeline: speed, memory, masks.

    python -m benchmarks.automatic_masks --images photos/cars.jpg --folder coco/images --sample 4

Every generator runs in a process of its own, on as many threads, with the same weights, images and
thresholds; what it found is compared mask by mask with what the official generator found. The peers
need torchvision, so they have an environment of their own, which is made when it is not there
(several GB). Cases:

- `grid`: one window, 32 x 32 points, every image;
- `paper`: the paper's 21 windows and 3072 points, small regions cleaned, the first image;
- `vit_b`: ViT-B of random weights, no thresholds, 8 x 8 points, the first image: for cost alone.
"""

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from benchmarks.mask_task import FoundMask, Made, Task
from engine.scenes import draw_scene
from model.checkpoint import Lineage, save_checkpoint
from model.sam import Sam, SamConfig
from stages.records import Rle
from stages.rle import rle_iou

OURS = ("fp32", "bf16", "detector")
PEERS = ("official", "transformers")
LEFT_OUT = {"paper": ("detector", "transformers"), "vit_b": ("detector",)}
"""The pipeline of transformers fails where crops have fewer points than the image; a detector is of
one encoder, and looks at whole images."""
PEER_PACKAGES = (
    "torch==2.14.1",
    "torchvision==0.29.1",
    "segment-anything==1.0",
    "transformers==5.23.0",
    "pycocotools==2.0.11",
    "pillow",
    "pydantic>=2",
    "safetensors",
    "opencv-python-headless",
)
SUFFIXES = (".jpg", ".jpeg", ".png")
ROOT = Path(__file__).parent.parent
CACHE = Path.home() / ".cache" / "sa-engine" / "peers"


@dataclass(frozen=True)
class Agreement:
    """Masks of a generator beside the official ones."""

    found: float
    """Share of the official masks that have one here."""
    right: float
    """Share of the masks here that have an official one."""
    predicted_iou: float
    """Largest difference of two that match."""
    stability_score: float
    """The same."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with TemporaryDirectory(prefix="sa-engine-") as name:
        folder = Path(name)
        images = [*options.images, *sample(options.folder, options.sample)] or draw(folder)
        for case, image, task in tasks(options, images, folder):
            made = {}
            for generator in options.generators:
                if generator in LEFT_OUT.get(case, ()):
                    continue
                chosen = task.model_copy(update={"generator": generator})
                try:
                    made[generator] = generate(chosen, options.peers, folder)
                except subprocess.CalledProcessError as error:
                    if generator in OURS:
                        raise
                    print(f"{case}, {image.name}: {generator} failed: {error}", file=sys.stderr)
            report(case, image, options.threads, made)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="default: drawn scenes")
    parser.add_argument("--folder", type=Path, help="of images, of which some are taken")
    parser.add_argument("--sample", type=int, default=4, help="how many of the folder")
    parser.add_argument("--cases", nargs="+", default=["grid", "paper", "vit_b"])
    parser.add_argument(
        "--generators",
        nargs="+",
        choices=OURS + PEERS,
        default=["fp32", "bf16", "official", "transformers"],
        help="ours: exact, with the encoder in bf16, with a detector's boxes instead of a grid",
    )
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--detector", type=Path, help="a run's detectors/NAME, for `detector`")
    parser.add_argument("--points", type=int, default=32, help="a side, in grid and paper")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=CACHE, help="environment of the peers")
    # Low ones, for a checkpoint that is unsure of itself.
    parser.add_argument("--pred-iou-thresh", type=float, default=0.2)
    parser.add_argument("--stability-score-thresh", type=float, default=0.8)
    parser.add_argument("--stability-score-offset", type=float, default=0.2)
    parser.add_argument("--box-nms-thresh", type=float, default=0.5)
    options = parser.parse_args(arguments)
    if "detector" in options.generators and options.detector is None:
        parser.error("--generators detector needs --detector, such as a run's detectors/round-02")
    if Path(options.checkpoint).exists():
        options.checkpoint = str(Path(options.checkpoint).absolute())
    return options


def tasks(
    options: argparse.Namespace, images: Sequence[Path], folder: Path
) -> Iterator[tuple[str, Path, Task]]:
    """Case, image and what to do, but for who is to do it."""
    grid = Task(
        generator="",
        image=images[0],
        checkpoint=options.checkpoint,
        detector=options.detector,
        threads=options.threads,
        points_per_side=options.points,
        pred_iou_thresh=options.pred_iou_thresh,
        stability_score_thresh=options.stability_score_thresh,
        stability_score_offset=options.stability_score_offset,
        box_nms_thresh=options.box_nms_thresh,
    )
    if "grid" in options.cases:
        for image in images:
            yield "grid", image, grid.model_copy(update={"image": image})
    if "paper" in options.cases:
        more = {"crop_n_layers": 2, "min_mask_region_area": 100}
        yield "paper", images[0], grid.model_copy(update=more)
    if "vit_b" in options.cases:
        torch.manual_seed(0)
        save_checkpoint(Sam(SamConfig.preset("vit_b")), folder / "vit_b", Lineage())
        for_cost = Task(
            generator="",
            image=images[0],
            checkpoint=str(folder / "vit_b"),
            threads=options.threads,
            points_per_side=8,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.0,
            stability_score_offset=1.0,
            box_nms_thresh=0.7,
        )
        yield "vit_b", images[0], for_cost


def generate(task: Task, peers: Path, folder: Path) -> Made:
    if task.generator in PEERS:
        python, module = environment(peers), "benchmarks.peer_masks"
    else:
        python, module = Path(sys.executable), "benchmarks.our_masks"
    question, answer = folder / "task.json", folder / "answer.json"
    detector = None if task.detector is None else task.detector.absolute()
    absolute = task.model_copy(update={"image": task.image.absolute(), "detector": detector})
    question.write_text(absolute.model_dump_json())
    subprocess.run([python, "-m", module, question, answer], cwd=ROOT, check=True)
    return Made.model_validate_json(answer.read_text())


def environment(folder: Path) -> Path:
    """Its Python; made once."""
    done = folder / "done"
    python = folder.absolute() / "bin" / "python"
    if not done.exists():
        print(f"making the peers' environment in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        done.touch()
    return python


def report(case: str, image: Path, threads: int, made: dict[str, Made]) -> None:
    """One line for each generator."""
    for generator, result in made.items():
        line: dict[str, object] = {
            "case": case,
            "image": image.name,
            "generator": generator,
            "threads": threads,
            "seconds": round(result.seconds, 2),
            "masks": len(result.masks),
            "peak_gb": round(result.peak_mb / 1000, 2),
        }
        for name in {"official", "fp32"} & made.keys() - {generator}:
            line[f"beside_{name}"] = beside(result, made[name])
        if result.stages:
            line["stages"] = {
                name: {key: float(f"{value:.3g}") for key, value in cost.model_dump().items()}
                for name, cost in result.stages.items()
            }
        print(json.dumps(line), flush=True)


def beside(made: Made, reference: Made) -> dict[str, object]:
    """How much faster, and how much the same at several IoU."""
    agreements = {iou: agreement(made, reference, iou) for iou in (0.99, 0.95, 0.5)}
    return {
        "times_faster": round(reference.seconds / made.seconds, 1),
        "times_masks_per_second": round(masks_per_second(made) / masks_per_second(reference), 1),
        "agreement": {
            str(iou): {name: round(value, 4) for name, value in asdict(figures).items()}
            for iou, figures in agreements.items()
        },
    }


def masks_per_second(made: Made) -> float:
    return max(len(made.masks), 1) / made.seconds


def agreement(made: Made, reference: Made, threshold: float) -> Agreement:
    """Whether masks have one of the other side at this IoU or more."""
    if not made.masks or not reference.masks:
        same = float(len(made.masks) == len(reference.masks))
        return Agreement(same, same, 0.0, 0.0)
    iou = rle_iou(rles(reference.masks), rles(made.masks))
    best = iou.argmax(axis=1)
    pairs = [
        (theirs, made.masks[i])
        for theirs, i, value in zip(reference.masks, best, iou.max(axis=1), strict=True)
        if value >= threshold
    ]
    return Agreement(
        found=float(np.mean(iou.max(axis=1) >= threshold)),
        right=float(np.mean(iou.max(axis=0) >= threshold)),
        predicted_iou=max((abs(a.predicted_iou - b.predicted_iou) for a, b in pairs), default=0.0),
        stability_score=max(
            (
                abs(a.stability_score - b.stability_score)
                for a, b in pairs
                if a.stability_score is not None and b.stability_score is not None
            ),
            default=0.0,
        ),
    )


def rles(masks: Sequence[FoundMask]) -> list[Rle]:
    return [Rle(size=mask.size_hw, counts=mask.counts) for mask in masks]


def draw(folder: Path) -> list[Path]:
    paths = []
    for number, size_hw in enumerate([(1500, 2250), (480, 640)]):
        paths.append(folder / f"scene-{size_hw[1]}x{size_hw[0]}.jpg")
        Image.fromarray(draw_scene(0, number, size_hw).pixels).save(paths[-1], quality=90)
    return paths


def sample(folder: Path | None, count: int) -> list[Path]:
    """The same images in every run, spread over the folder."""
    if folder is None:
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return paths[:: max(len(paths) // max(count, 1), 1)][:count]


if __name__ == "__main__":
    main()
