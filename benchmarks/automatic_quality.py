"""How good automatic masks are against people's regions, for the thresholds of a config.

    python -m benchmarks.automatic_quality --photographs bsds --config demo
    python -m benchmarks.automatic_quality --photographs bsds --set pred_iou_thresh=0.3

Held-out images only (see `benchmarks/seed_data.py`). Printed, as JSON: masks per image; `precise`,
the share of emitted masks that meet some region at IoU 0.5; `covered`, the share of regions with
two votes or more and 100 pixels or more that some mask meets at IoU 0.5. With `--pictures` the
masks of the photographs that scikit-image ships are drawn as well.
"""

import argparse
import json
import time
from collections.abc import Iterable
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
from stages.records import MaskRecord
from stages.rle import rle_area, rle_iou

MIN_AREA = 100
MIN_IOU = 0.5
PICTURES = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="COCO-style, with votes")
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
    print(json.dumps(measure(sam, config, images[: options.max_images])))
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


def measure(
    sam: Sam, config: FullyAutomaticConfig, images: Iterable[LabelledImage]
) -> dict[str, float]:
    num_images = num_masks = num_precise = num_regions = num_covered = 0
    started = time.monotonic()
    for number, image in enumerate(images):
        with Image.open(image.path) as file:
            masks = annotate(sam, config, number, np.asarray(file.convert("RGB")))
        large = [rle_area(rle) >= MIN_AREA for rle in image.rles]
        agreed = np.array([votes >= 2 for votes in image.weights]) & large
        num_images += 1
        num_masks += len(masks)
        num_regions += int(agreed.sum())
        if masks:
            iou = rle_iou([mask.segmentation for mask in masks], image.rles)
            num_precise += int((iou.max(axis=1) >= MIN_IOU).sum())
            num_covered += int((iou.max(axis=0) >= MIN_IOU)[agreed].sum())
    return {
        "images": num_images,
        "masks_per_image": round(num_masks / max(num_images, 1), 1),
        "precise": round(num_precise / max(num_masks, 1), 3),
        "covered": round(num_covered / max(num_regions, 1), 3),
        "seconds_per_image": round((time.monotonic() - started) / max(num_images, 1), 2),
    }


def annotate(
    sam: Sam, config: FullyAutomaticConfig, number: int, pixels: NDArray[np.uint8]
) -> tuple[MaskRecord, ...]:
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
