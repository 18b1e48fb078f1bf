"""What tells a good automatic mask from a bad one, before any threshold?

    python -m benchmarks.mask_ranking --photographs bsds --max-images 10

A grid of clicks over the validation images, three masks each, on the grid of the low-resolution
logits. A mask's quality is its best IoU with any region that an annotator drew. Printed for the
predicted IoU, the stability score and the area: the correlation with that quality, the area under
the ROC curve for masks of IoU 0.5 and more, and the share of those among the best tenth.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

from benchmarks.seed_data import LabelledImage, read_folder
from model.checkpoint import load_checkpoint
from model.prompt_encoder import Prompts
from model.sam import Sam
from stages.predictor import embed
from stages.prompts import point_grid
from stages.records import Rle
from stages.rle import decode_rle, rle_area

MIN_AREA = 100
MIN_IOU = 0.5
STRIDE = 4
BATCH = 50

Values = NDArray[np.float64]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="COCO-style")
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--points-per-side", type=int, default=20)
    parser.add_argument("--max-images", type=int)
    options = parser.parse_args(arguments)
    sam = load_checkpoint(options.checkpoint).sam
    images = read_folder(options.photographs, held_out=True, split=options.split)
    columns = [
        score_masks(sam, image, options.points_per_side) for image in images[: options.max_images]
    ]
    quality, *scores = (np.concatenate(column) for column in zip(*columns, strict=True))
    print(json.dumps({"masks": len(quality), "good": round(float((quality >= MIN_IOU).mean()), 3)}))
    for name, score in zip(("predicted_iou", "stability_score", "area"), scores, strict=True):
        print(json.dumps({"score": name, **ranking(score, quality)}))


@torch.inference_mode()
def score_masks(
    sam: Sam, image: LabelledImage, points_per_side: int
) -> tuple[Values, Values, Values, Values]:
    """Quality, predicted IoU, stability and area (cells) of all masks of an image, (N,) each."""
    height, width = image.size_hw
    scale = sam.config.image_size / max(height, width)
    rows, columns = round(height * scale / STRIDE), round(width * scale / STRIDE)
    large = [rle for rle in image.rles if rle_area(rle) >= MIN_AREA]
    regions = torch.stack([_shrunk(rle, (columns, rows)) for rle in large])
    with Image.open(image.path) as file:
        embedding = embed(sam, np.asarray(file.convert("RGB")))
    points = torch.from_numpy(point_grid(points_per_side, image.size_hw) * scale).float()[:, None]
    found: list[tuple[Values, ...]] = []
    for part in points.split(BATCH):
        answer = sam.decode(
            embedding, Prompts(part, torch.ones(len(part), 1).long()), multimask_output=True
        )
        logits = answer.low_res_masks[..., :rows, :columns].flatten(2).flatten(0, 1)
        masks = (logits > 0).float()
        area, overlap = masks.sum(1), masks @ regions.T
        union = area[:, None] + regions.sum(1) - overlap
        inner, outer = (logits > 1).sum(1), (logits > -1).sum(1)
        values = (
            (overlap / union.clamp(min=1)).amax(1),
            answer.predicted_iou.flatten(),
            inner / outer.clamp(min=1),
            area,
        )
        found.append(tuple(value.double().numpy() for value in values))
    quality, predicted, stability, areas = (np.concatenate(c) for c in zip(*found, strict=True))
    return quality, predicted, stability, areas


def ranking(score: Values, quality: Values) -> dict[str, float]:
    good = quality >= MIN_IOU
    num_good, num_bad = int(good.sum()), int((~good).sum())
    above = rankdata(score)[good].sum() - num_good * (num_good + 1) / 2
    best = np.argsort(-score, kind="stable")[: max(1, len(score) // 10)]
    figures = {
        "correlation": np.corrcoef(score, quality)[0, 1]
        if np.ptp(score) and np.ptp(quality)
        else 0.0,
        "auc": above / max(1, num_good * num_bad),
        "good_among_best_tenth": good[best].mean(),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def _shrunk(rle: Rle, size_wh: tuple[int, int]) -> torch.Tensor:
    """A region as (rows * columns,) ones and zeros."""
    whole = Image.fromarray(decode_rle(rle).astype(np.uint8) * 255)
    small = np.asarray(whole.resize(size_wh, Image.Resampling.BOX)) > 127
    return torch.from_numpy(small).flatten().float()


if __name__ == "__main__":
    main()
