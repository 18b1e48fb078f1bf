"""Train the scorer of automatic masks (`model/mask_scorer.py`).

    python -m benchmarks.mask_scorer --photographs bsds --work runs/scorer \
        --out model/mask_scorer.safetensors

The folder is COCO-style, `images/` beside `instances.json`, and its regions cover its images. Of
every photograph the masks that a grid of clicks gives, without duplicates (the one of more
agreement stays), are taught their IoU with the region most like them, whoever drew it. What is held
out (`benchmarks/seed_data.py`) is never trained on; the figures that are printed are of the
held-out images of the training split. The masks of each photograph are kept in the work folder and
not made again when the same command is given again.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from benchmarks.kept import arrays_kept, sam_of
from benchmarks.seed_data import LabelledImage, read_folder
from model.checkpoint import storable_weights
from model.edge_detector import edge_detector_sha256
from model.mask_scorer import NUM_FEATURES, MaskScorer
from model.prompt_encoder import Prompts
from model.sam import Sam
from stages.filters import box_nms
from stages.predictor import MASK_THRESHOLD, Predictor, embed_batch
from stages.prompts import point_grid
from stages.rle import encode_window, rle_iou
from stages.snapped_upscale import SnappedUpscale
from stages.superpixels import UNCORRECTED, Superpixels

log = logging.getLogger("mask_scorer")

POINTS_PER_SIDE = 22
PROMPTS = 16
"""Decoded at once."""
NMS_THRESH = 0.85
MIN_AGREEMENT = 0.1
"""Masks of less are not taught: there are many, and hardly one is a thing."""
STEPS, BATCH, LEARNING_RATE, WARMUP, WEIGHT_DECAY = 600, 512, 2e-3, 50, 0.05
TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class ScoredMasks:
    """Of one image, or of many."""

    features: NDArray[np.float32]
    """(N, F)"""
    ious: NDArray[np.float32]
    """(N,) with the region most like each."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--work", type=Path, required=True, help="masks and their IoUs")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sides = taught_and_watched(options.photographs)
    log.info("%d images, %d held out", *(len(images) for images in sides))
    if not sides[0]:
        raise SystemExit(f"{options.photographs} has no image to train on: all are held out")
    measure = partial(scored_masks_kept, checkpoint=options.checkpoint, work=options.work)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        taught, watched = (together(list(pool.map(measure, images))) for images in sides)
    scorer = train(taught)
    log.info(json.dumps({"masks": len(taught.ious), **figures(scorer, watched)}))
    part = options.out.with_suffix(".part")
    save_file(storable_weights(scorer, torch.float32), part)
    part.replace(options.out)


def taught_and_watched(folder: Path) -> list[list[LabelledImage]]:
    """The photographs that are learnt from, and those on which what is learnt is looked at."""
    return [
        read_folder(folder, held_out=held_out, split=TRAINING_SPLIT) for held_out in (False, True)
    ]


def scored_masks_kept(image: LabelledImage, *, checkpoint: str, work: Path) -> ScoredMasks:
    made_by = checkpoint, edge_detector_sha256(), UNCORRECTED, POINTS_PER_SIDE
    found = arrays_kept(work, image, made_by, lambda: vars(scored_masks(sam_of(checkpoint), image)))
    return ScoredMasks(**found)


@torch.inference_mode()
def scored_masks(sam: Sam, image: LabelledImage) -> ScoredMasks:
    with Image.open(image.path) as file:
        pixels = np.asarray(file.convert("RGB"))
    untaught = MaskScorer().eval()  # to be told what masks look like
    superpixels = Superpixels(pixels, UNCORRECTED, untaught)
    embedding = embed_batch(sam, [pixels], "fp32")
    predictor = Predictor(sam, pixels.shape[:2], embedding, superpixels=superpixels)
    upscale = predictor.upscale
    assert isinstance(upscale, SnappedUpscale)
    decoder = sam.prepare(embedding)
    rles, boxes, features, agreements = [], [], [], []
    points = point_grid(POINTS_PER_SIDE, predictor.size_hw)
    for some in np.array_split(points, -(-len(points) // PROMPTS)):
        clicks = predictor.transform.apply_coords(torch.from_numpy(some))[:, None]
        prompts = Prompts(clicks, torch.ones(clicks.shape[:2], dtype=torch.int64))
        reading = decoder.read(prompts, multimask_output=True)
        low_res = decoder.masks(reading, torch.arange(len(some))).flatten(0, 1)
        told, agreement = upscale.features(low_res, threshold=MASK_THRESHOLD)
        for i in np.flatnonzero(agreement > MIN_AGREEMENT):
            window = upscale.mask(low_res[i], threshold=MASK_THRESHOLD)
            if window is not None:
                (x, y), (h, w) = window.offset_xy, window.mask.shape
                boxes.append((x, y, x + w - 1, y + h - 1))
                rles.append(encode_window(window.mask, offset_xy=(x, y), size_hw=predictor.size_hw))
                features.append(told[i])
                agreements.append(agreement[i])
    table = np.array(features).reshape(-1, NUM_FEATURES)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    kept = box_nms(corners, np.array(agreements, dtype=np.float32), NMS_THRESH)
    ious = rle_iou([rles[i] for i in kept], image.rles).max(axis=1, initial=0)
    return ScoredMasks(table[kept].astype(np.float32), ious.astype(np.float32))


def together(images: Sequence[ScoredMasks]) -> ScoredMasks:
    nothing = ScoredMasks(np.zeros((0, NUM_FEATURES), np.float32), np.zeros(0, np.float32))
    return ScoredMasks(
        np.concatenate([nothing.features, *(image.features for image in images)]),
        np.concatenate([nothing.ious, *(image.ious for image in images)]),
    )


def train(taught: ScoredMasks) -> MaskScorer:
    """Cross-entropy with the IoU; in eval mode."""
    torch.manual_seed(0)
    scorer = MaskScorer()
    features, ious = torch.from_numpy(taught.features), torch.from_numpy(taught.ious)
    scorer.mean.copy_(features.mean(dim=0))
    scorer.deviation.copy_(features.std(dim=0).clamp(min=1e-6))
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        rate = min(1, (step + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        chosen = torch.randint(len(ious), (BATCH,))
        logits = scorer(features[chosen])
        loss = F.binary_cross_entropy_with_logits(logits, ious[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scorer.eval()


def figures(scorer: MaskScorer, watched: ScoredMasks) -> dict[str, float]:
    """Of masks that were not taught: the mean error of their predicted IoU, and its correlation
    with the true one."""
    if not len(watched.ious):
        return {}
    predicted = scorer.predicted_iou(watched.features.astype(np.float64))
    return {
        "held_out_error": round(float(np.abs(predicted - watched.ious).mean()), 4),
        "held_out_correlation": round(float(np.corrcoef(predicted, watched.ious)[0, 1]), 3),
    }


if __name__ == "__main__":
    main()
