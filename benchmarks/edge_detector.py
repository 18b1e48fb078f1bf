"""Train the edge detector that superpixels are made with (`model/edge_detector.py`).

    python -m benchmarks.edge_detector --photographs bsds --work runs/edges \
        --out model/edge_detector.safetensors

The folder is COCO-style, `images/` beside `instances.json`, and its regions cover its images: each
pixel is taught the share of annotators (`votes` of `n_annotators`) who have it at the border of a
region. What is held out (`benchmarks/seed_data.py`) is never trained on; the held-out loss that is
printed is that of the held-out images of the training split. Resumed where it was stopped when the
same command is given again.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.seed_data import held_out_record
from model.checkpoint import storable_weights
from model.edge_detector import EdgeDetector
from stages.records import Rle
from stages.rle import Mask, decode_rle

log = logging.getLogger("edge_detector")

STEPS, BATCH, SIDE = 6400, 8, 256
CYCLE = 3200
"""Steps after which the learning rate begins anew."""
LEARNING_RATE, FINAL_SHARE, WARMUP = 2e-3, 0.02, 100
AVERAGING = 0.998
SAVE_EVERY, LOG_EVERY = 250, 50
LOG = "log.jsonl"
EDGE_WEIGHT = 3.0
"""An edge's pixel weighs so much more than one without, as it is rare."""
COARSE_WEIGHT = 0.25
"""Of the loss at each coarser scale."""
MARGIN = 4
"""Pixels beside the image's end, where an edge may lie outside of it, that are not taught."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class EdgeImage:
    path: Path
    photograph: Image.Image
    edges: Pixels
    """(H, W), the share of annotators."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"more than {CYCLE}: a multiple of it"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    images = read_edges(options.photographs, held_out=False)
    watched = read_edges(options.photographs, held_out=True)
    log.info("%d images, %d held out", len(images), len(watched))
    if not images:
        raise SystemExit(f"{options.photographs} has no image to train on: all are held out")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    detector = train(images, watched, options.work, options.steps)
    part = options.out.with_suffix(".part")
    save_file(storable_weights(detector, torch.float16), part)
    part.replace(options.out)


def read_edges(directory: Path, *, held_out: bool) -> list[EdgeImage]:
    """Of the training split: what is trained on, or what is held out of it, for choices."""
    document = json.loads((directory / "instances.json").read_text())
    regions: dict[int, list[dict[str, Any]]] = {}
    for region in document["annotations"]:
        regions.setdefault(region["image_id"], []).append(region)
    images = []
    for record in document["images"]:
        of_evaluation = record.get("split", "").startswith(("val", "test"))
        if of_evaluation or record["id"] not in regions:
            continue
        if held_out_record(directory, record) != held_out:
            continue
        edges = np.zeros((record["height"], record["width"]), dtype=np.float32)
        for region in regions[record["id"]]:
            share = region.get("votes", 1) / region.get("n_annotators", 1)
            edges += share * border(decode_rle(Rle(**region["segmentation"])))
        path = directory / "images" / record["file_name"]
        with Image.open(path) as file:
            images.append(EdgeImage(path, file.convert("RGB"), edges.clip(0, 1)))
    return images


def border(mask: Mask) -> Mask:
    """(H, W) the mask's pixels beside pixels of the image that are not the mask's."""
    inside = ndimage.binary_erosion(mask, border_value=1)
    outermost: Mask = mask & ~inside
    return outermost


class EdgeSamples(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Random windows, from sample `first` on: colours (3, S, S) of 0 to 1, edges (1, S, S), and
    which pixels are taught."""

    def __init__(self, images: Sequence[EdgeImage], first: int, seed: int = 0) -> None:
        self.images, self.first, self.seed = images, first, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        index = self.first
        while True:
            rng = np.random.default_rng((self.seed, index))
            colours, edges, taught = sample(self.images[rng.integers(len(self.images))], rng)
            yield (
                torch.from_numpy(colours).permute(2, 0, 1),
                torch.from_numpy(edges)[None],
                torch.from_numpy(taught)[None],
            )
            index += 1


def sample(image: EdgeImage, rng: np.random.Generator) -> tuple[Pixels, Pixels, Mask]:
    """A window turned, stretched, mirrored and recoloured at random."""
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(2.0))))
    stretch = float(np.exp(rng.uniform(-0.1, 0.1)))
    angle = np.deg2rad(rng.uniform(-25, 25)) if rng.random() < 0.6 else 0.0
    mirrored = rng.random() < 0.5
    to_source = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_source *= (-1 if mirrored else 1) / (scale * stretch), stretch / scale
    centre = rng.uniform(0.15, 0.85, 2) * image.photograph.size
    corner = centre - to_source.sum(axis=1) * SIDE / 2
    affine = tuple(np.column_stack((to_source, corner)).ravel().tolist())

    def window(source: Image.Image, resampling: Image.Resampling) -> Pixels:
        moved = source.transform((SIDE, SIDE), Image.Transform.AFFINE, affine, resampling)
        return np.asarray(moved, dtype=np.float32)

    shrinks = scale < 1  # thin lines would be lost between pixels
    blur = ImageFilter.GaussianBlur(0.5 / scale)
    photograph = image.photograph.filter(blur) if scale < 0.85 else image.photograph
    drawn = Image.fromarray(ndimage.maximum_filter(image.edges, 3) if shrinks else image.edges)
    edges = window(drawn, Image.Resampling.BILINEAR)
    edges = np.clip(ndimage.gaussian_filter(edges, 1.0) * 1.3, 0, 1)  # people are a pixel apart
    whole = Image.new("L", image.photograph.size, 255)
    inside = window(whole, Image.Resampling.NEAREST) > 0
    taught = ndimage.binary_erosion(inside, iterations=MARGIN, border_value=1)
    colours = window(photograph, Image.Resampling.BILINEAR) / 255
    return recoloured(colours, rng), edges.astype(np.float32), taught


def recoloured(colours: Pixels, rng: np.random.Generator) -> Pixels:
    if rng.random() < 0.1:
        colours = np.repeat(colours.mean(axis=2, keepdims=True), 3, axis=2)
    colours = (colours - 0.5) * rng.uniform(0.7, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    colours = colours * rng.uniform(0.85, 1.15, (1, 1, 3))
    if rng.random() < 0.2:
        colours = colours[..., rng.permutation(3)]
    if rng.random() < 0.25:
        sigma = rng.uniform(0.3, 1.2)
        colours = ndimage.gaussian_filter(colours, (sigma, sigma, 0))
    noise = rng.normal(0, rng.uniform(0, 0.04), colours.shape)
    changed: Pixels = np.clip(colours + noise, 0, 1).astype(np.float32)
    return changed


def edge_loss(logits: Tensor, edges: Tensor, taught: Tensor) -> Tensor:
    """Cross-entropy with shares, of logits at any stride."""
    if logits.shape != edges.shape:
        logits = F.interpolate(logits, edges.shape[-2:], mode="bilinear", align_corners=False)
    weights = (1 + EDGE_WEIGHT * edges) * taught
    losses = F.binary_cross_entropy_with_logits(logits, edges, reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(
    images: Sequence[EdgeImage], watched: Sequence[EdgeImage], work: Path, steps: int
) -> EdgeDetector:
    """The averaged weights, in eval mode."""
    torch.manual_seed(0)
    detector = EdgeDetector()
    averaged = AveragedModel(detector, avg_fn=_moved_average, use_buffers=True)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    done, state = 0, work / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        detector.load_state_dict(saved["detector"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["steps"]
    work.mkdir(parents=True, exist_ok=True)
    _forget_after(work / LOG, done)
    batches = iter(
        DataLoader(EdgeSamples(images, done * BATCH), BATCH, num_workers=1, prefetch_factor=6)
    )
    started, first = time.monotonic(), done
    while done < steps:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(done, min(CYCLE, steps))
        colours, edges, taught = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            scales = detector.at_all_scales(colours.contiguous(memory_format=torch.channels_last))
        *coarse, finest = [edge_loss(logits.float(), edges, taught) for logits in scales]
        loss = finest + COARSE_WEIGHT * torch.stack(coarse).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        averaged.update_parameters(detector)
        done += 1
        if done % LOG_EVERY == 0 or done == steps:
            seconds = (time.monotonic() - started) / (done - first)
            line = {"step": done, "loss": round(finest.item(), 4), "seconds": round(seconds, 2)}
            if done % SAVE_EVERY == 0 or done == steps:
                line["held_out_loss"] = round(held_out_loss(averaged.module, watched), 4)
                _save(state, detector, averaged, optimizer, done)
            log.info(json.dumps(line))
            with (work / LOG).open("a") as file:
                file.write(json.dumps(line) + "\n")
    trained: EdgeDetector = averaged.module
    return trained.eval()


@torch.inference_mode()
def held_out_loss(detector: EdgeDetector, images: Sequence[EdgeImage]) -> float:
    """Of one window an image, always the same; nan without images."""
    detector.eval()
    losses = []
    for number, image in enumerate(images):
        colours, edges, taught = sample(image, np.random.default_rng(number))
        logits = detector(torch.from_numpy(colours).permute(2, 0, 1)[None])
        wanted = torch.from_numpy(edges)[None, None], torch.from_numpy(taught)[None, None]
        losses.append(edge_loss(logits, *wanted).item())
    return float(np.mean(losses)) if losses else float("nan")


def _schedule(step: int, cycle: int) -> float:
    """Share of the learning rate: a line up, then half a cosine down in each cycle, as in
    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017)."""
    falling = 0.5 * (1 + np.cos(np.pi * (step % cycle) / cycle)) * (1 - FINAL_SHARE) + FINAL_SHARE
    return float(min(1.0, (step + 1) / WARMUP) * falling)


def _moved_average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    if not averaged.is_floating_point():
        return current
    return averaged.lerp(current, 1 - min(AVERAGING, float(updates + 1) / (float(updates) + 20)))


def _forget_after(path: Path, step: int) -> None:
    """What a stopped training logged after it was saved for the last time is made again."""
    if path.exists():
        whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))


def _save(
    path: Path,
    detector: EdgeDetector,
    averaged: AveragedModel,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> None:
    state = {
        "detector": detector.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "steps": steps,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


if __name__ == "__main__":
    main()
