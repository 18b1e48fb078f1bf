"""How good automatic masks are against people's regions, for the thresholds of a config.

    python -m benchmarks.automatic_quality --photographs bsds --config demo
    python -m benchmarks.automatic_quality --photographs bsds --set pred_iou_thresh=0.3

Held-out images only (see `benchmarks/seed_data.py`). Printed, as JSON: masks per image; `precise`,
the share of emitted masks that meet some region at IoU 0.5; `covered`, the share of regions with
two votes or more and 100 pixels or more that some mask meets at IoU 0.5. Then the same of the masks
of highest predicted IoU alone, so many an image; and, to compare with, of how many regions one
person draws, the share that meets another person's. With `--pictures` the masks of the photographs
that scikit-image ships are drawn as well.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks.seed_data import LabelledImage, read_folder
from engine.config import load_config, merged
from engine.context import load_run_checkpoint
from engine.images import WorkSize, resize_to_work_size
from engine.pictures import overlay, png_bytes
from engine.store import open_store
from model.sam import Sam
from stages.base import Provenance
from stages.filters import FilterConfig
from stages.fully_automatic import FullyAutomatic, FullyAutomaticConfig
from stages.predictor import Image as Photograph
from stages.records import MaskRecord, Rle
from stages.rle import rle_area, rle_iou

MIN_AREA = 100
MIN_IOU = 0.5
BEST = (10, 20, 50, 100)
"""So many masks of an image, those of highest predicted IoU."""
PICTURES = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photographs", type=Path, required=True, help="COCO-style, votes if it has them"
    )
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--config", default="demo", help="whose `fully_automatic` is measured")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--pictures", type=Path, help="folder for PNGs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = changed_config(load_config(options.config).fully_automatic, options.set)
    sam = load_run_checkpoint(open_store("."), options.checkpoint).sam
    images = read_folder(options.photographs, held_out=True, split=options.split)
    found = measure(sam, config, images[: options.max_images])
    for line in (*found, people(options.photographs, options.split)):
        print(json.dumps(line))
    if options.pictures is not None:
        draw(sam, config, options.pictures)


def changed_config(config: FullyAutomaticConfig, settings: Iterable[str]) -> FullyAutomaticConfig:
    fields: dict[str, Any] = config.model_dump(mode="json")
    for setting in settings:
        name, _, value = setting.partition("=")
        change = {name: yaml.safe_load(value)}
        is_filter = name in FilterConfig.model_fields
        fields = merged(fields, {"filters": change} if is_filter else change)
    return FullyAutomaticConfig.model_validate(fields)


@dataclass
class Tally:
    """Of the `best` masks of every image; None: of all."""

    best: int | None
    masks: int = 0
    precise: int = 0
    covered: int = 0

    def add(self, meets: NDArray[np.bool_], agreed: NDArray[np.bool_]) -> None:
        """
        Args:
            meets: (N, R), which of N masks, best first, meets which region.
            agreed: (R,), the regions to be covered.
        """
        taken = meets[: self.best]
        self.masks += len(taken)
        self.precise += int(taken.any(axis=1).sum())
        self.covered += int((taken.any(axis=0) & agreed).sum())

    def shares(self, num_images: int, num_regions: int) -> dict[str, float]:
        return {
            "masks_per_image": round(self.masks / max(num_images, 1), 1),
            "precise": round(self.precise / max(self.masks, 1), 3),
            "covered": round(self.covered / max(num_regions, 1), 3),
        }


def measure(
    sam: Sam, config: FullyAutomaticConfig, images: Iterable[LabelledImage]
) -> list[dict[str, float]]:
    """Of all masks, then of the best of every image."""
    everything, *rest = tallies = [Tally(None), *(Tally(best) for best in BEST)]
    num_images = num_regions = 0
    started = time.monotonic()
    for number, image in enumerate(images):
        with Image.open(image.path) as file:
            masks = annotate(sam, config, number, np.asarray(file.convert("RGB")))
        large = [rle_area(rle) >= MIN_AREA for rle in image.rles]
        agreed = np.array([votes >= 2 for votes in image.weights]) & large
        num_images += 1
        num_regions += int(agreed.sum())
        masks = sorted(masks, key=lambda mask: -mask.predicted_iou)
        meets = rle_iou([mask.segmentation for mask in masks], image.rles) >= MIN_IOU
        for tally in tallies:
            tally.add(meets, agreed)
    seconds = round((time.monotonic() - started) / max(num_images, 1), 2)
    whole = everything.shares(num_images, num_regions)
    return [
        {"images": num_images, **whole, "seconds_per_image": seconds},
        *(
            {"best": best, **tally.shares(num_images, num_regions)}
            for best, tally in zip(BEST, rest, strict=True)
        ),
    ]


def people(photographs: Path, split: str) -> dict[str, float]:
    """How many regions a person draws, and the share that meets some region of another person.

    One person's regions do not overlap, so what meets a region was drawn by somebody else.
    """
    document = json.loads((photographs / "instances.json").read_text())
    images = {record["id"] for record in document["images"] if record.get("split") == split}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for region in document["annotations"]:
        if region["image_id"] in images and region["area"] >= MIN_AREA:
            by_image.setdefault(region["image_id"], []).append(region)
    drawn = met = persons = 0
    for regions in by_image.values():
        rles = [Rle(**region["segmentation"]) for region in regions]
        iou = rle_iou(rles, rles)
        np.fill_diagonal(iou, 0)
        votes = np.array([region.get("votes", 1) for region in regions])
        drawn += int(votes.sum())
        met += int(votes[(votes >= 2) | (iou.max(axis=1) >= MIN_IOU)].sum())
        persons += regions[0].get("n_annotators", 1)
    return {
        "regions_per_person": round(drawn / max(persons, 1), 1),
        "precise": round(met / max(drawn, 1), 3),
    }


def annotate(
    sam: Sam, config: FullyAutomaticConfig, number: int, pixels: NDArray[np.uint8]
) -> Sequence[MaskRecord]:
    stage = FullyAutomatic(sam, config, Provenance(round=0, checkpoint="measured"))
    return stage.run(Photograph(number, pixels), np.random.default_rng(number)).masks


def draw(sam: Sam, config: FullyAutomaticConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(PICTURES):
        with Image.open(Path(skimage.data.__file__).parent / name) as file:
            pixels = resize_to_work_size(np.asarray(file.convert("RGB")), WorkSize())
        masks = annotate(sam, config, number, pixels)
        picture = overlay(pixels, [mask.segmentation for mask in masks])
        (folder / f"{Path(name).stem}.png").write_bytes(png_bytes(picture))
        print(json.dumps({"picture": name, "masks": len(masks)}))


if __name__ == "__main__":
    main()
