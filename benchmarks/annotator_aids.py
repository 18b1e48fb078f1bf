"""What superpixels and a second look at small objects save an annotator, and what they cost.

    python -m benchmarks.annotator_aids --photographs bsds --split val --max-images 12

The simulated annotator draws the same objects of held-out images four times, with `snap` and with
`zoom_in` and without. One line of JSON for each: seconds of its clock, clicks and brush strokes a
mask, how well the model answered without the brush, how many masks it threw away, and what a mask
cost this machine.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.seed_data import LabelledImage, read_folder
from model.checkpoint import load_checkpoint
from model.sam import Sam
from stages.annotator import SimulatedAnnotator, SimulatedAnnotatorConfig
from stages.base import Provenance
from stages.predictor import embed
from stages.prompts import mask_iou
from stages.records import MaskRecord, StageName
from stages.rle import Mask, decode_rle
from stages.zoom_in import predictor_of

MIN_AREA = 100
SEED = 0


@dataclass
class Sums:
    objects: int = 0
    masks: int = 0
    annotator_seconds: float = 0.0
    machine_seconds: float = 0.0
    clicks: int = 0
    strokes: int = 0
    answered_ious: list[float] = field(default_factory=list)

    def line(self) -> dict[str, float]:
        objects = max(1, self.objects)
        return {
            "objects": self.objects,
            "seconds_a_mask": round(self.annotator_seconds / objects, 2),
            "clicks": round(self.clicks / objects, 2),
            "strokes": round(self.strokes / objects, 2),
            "iou_before_strokes": round(float(np.mean(self.answered_ious or [0.0])), 3),
            "thrown_away": self.objects - self.masks,
            "machine_seconds_a_mask": round(self.machine_seconds / objects, 2),
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="COCO-style")
    parser.add_argument("--split", help="images of this split; else those held out by their hash")
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--max-objects", type=int, help="of an image, the largest")
    parser.add_argument("--target-iou", type=float, default=0.8)
    options = parser.parse_args(arguments)
    sam = load_checkpoint(options.checkpoint).sam
    images = read_folder(options.photographs, held_out=True, split=options.split, min_votes=2)
    config = SimulatedAnnotatorConfig(
        target_iou=options.target_iou, max_objects=options.max_objects, min_object_area=MIN_AREA
    )
    for snap, zoom_in in itertools.product((False, True), repeat=2):
        sums = measure(sam, images[: options.max_images], config, zoom_in=zoom_in, snap=snap)
        print(json.dumps({"snap": snap, "zoom_in": zoom_in, **sums.line()}), flush=True)


def measure(
    sam: Sam,
    images: Sequence[LabelledImage],
    config: SimulatedAnnotatorConfig,
    *,
    zoom_in: bool,
    snap: bool,
) -> Sums:
    sums = Sums()
    annotator = SimulatedAnnotator(config, max_mask_seconds=1000.0)
    for number, image in enumerate(images):
        with Image.open(image.path) as file:
            pixels = np.asarray(file.convert("RGB"))
        truths = [decode_rle(rle) for rle in image.rles]
        embedding = embed(sam, pixels)
        began = time.monotonic()
        predictor = predictor_of(sam, pixels, embedding, zoom_in=zoom_in, snap=snap)
        submission = annotator.annotate(
            predictor,
            truths,
            stage=StageName.ASSISTED_MANUAL,
            provenance=Provenance(0, "benchmark"),
            rng=np.random.default_rng([SEED, number]),
        )
        sums.machine_seconds += time.monotonic() - began
        large = sum(int(truth.sum()) >= MIN_AREA for truth in truths)
        sums.objects += min(large, config.max_objects or large)
        sums.annotator_seconds += submission.seconds
        sums.masks += len(submission.masks)
        for mask in submission.masks:
            sums.clicks += mask.num_clicks
            sums.strokes += sum(action.kind == "brush" for action in mask.interactions)
            sums.answered_ious.append(_answered_iou(mask, truths))
    return sums


def _answered_iou(record: MaskRecord, truths: Sequence[Mask]) -> float:
    """Of the model's last answer with the object that the finished mask is of."""
    finished = decode_rle(record.segmentation)
    truth = max(truths, key=lambda one: mask_iou(one, finished))
    answers = [action.answer for action in record.interactions if action.kind != "brush"]
    return mask_iou(decode_rle(answers[-1]), truth)


if __name__ == "__main__":
    main()
