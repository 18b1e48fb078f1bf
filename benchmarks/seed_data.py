"""Training samples for the shipped checkpoint, from COCO-style folders and drawn scenes.

A folder is `images/` beside `instances.json`. What is held out, a config says (`held_out`), and it
never reaches a training sample; `sa-engine evaluate` reads the annotations of that part after

    python -m benchmarks.seed_data --held-out coco --out coco-held-out.json

A sample is keyed by (seed, index), so a run that was stopped goes on with the samples it would have
met.
"""

# Axes: B images, K clicks of one image, S input side, stride 4 for masks.

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from benchmarks.seed_config import SHIPPED, Augmentation, HeldOut, load_seed_config
from engine.coco import RefusedAnnotationError, read_mask
from model.pretraining import ClickBatch
from stages.records import Rle
from stages.rle import decode_rle
from stages.zoom_in import CROP_SHARE, FITS

HELD_OUT = HeldOut()
"""Of all networks that ship."""
MIN_CELLS = 8  # smaller regions are noise at stride 4
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledImage:
    path: Path
    size_hw: tuple[int, int]
    rles: tuple[Rle, ...]
    weights: tuple[float, ...]
    """How often a mask is chosen, relative to the others of its image."""


@dataclass(frozen=True)
class Sample:
    pixels: Pixels
    """(S, S, 3), padded right and bottom."""
    masks: Mask
    """(n, S/4, S/4)."""
    size_hw: tuple[int, int]
    """The part that is not padding."""


def held_out_record(directory: Path, record: dict[str, Any], rule: HeldOut | None = None) -> bool:
    """Whether an image is for evaluation only, by its file's hash and its folder's own split."""
    content = (directory / "images" / record["file_name"]).read_bytes()
    return (rule or HELD_OUT).holds(hashlib.sha256(content).hexdigest(), record.get("split", ""))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The held-out part of a COCO-style folder.")
    parser.add_argument("--held-out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--config", type=Path, default=SHIPPED, help="what it is held out of")
    options = parser.parse_args(arguments)
    document = json.loads((options.held_out / "instances.json").read_text())
    rule = load_seed_config(options.config).held_out
    images = [
        image for image in document["images"] if held_out_record(options.held_out, image, rule)
    ]
    ids = {image["id"] for image in images}
    annotations = [one for one in document["annotations"] if one["image_id"] in ids]
    options.out.write_text(json.dumps(document | {"images": images, "annotations": annotations}))
    print(f"{len(images)} images, {len(annotations)} masks")


def read_folder(
    directory: Path,
    *,
    held_out: bool,
    min_votes: int = 1,
    split: str | None = None,
    rule: HeldOut | None = None,
) -> list[LabelledImage]:
    """The images of one side of the split, without crowds and without images that show no mask."""
    document = json.loads((directory / "instances.json").read_text())
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        if annotation.get("votes", min_votes) >= min_votes and not annotation.get("iscrowd", 0):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    images = []
    for record in document["images"]:
        annotations = by_image.get(record["id"], [])
        if split is not None and record.get("split") != split:
            continue
        if not annotations or held_out_record(directory, record, rule) != held_out:
            continue
        size_hw = (record["height"], record["width"])
        masks = _masks(annotations, size_hw)
        if masks:
            path = directory / "images" / record["file_name"]
            images.append(LabelledImage(path, size_hw, *zip(*masks, strict=True)))
    return images


def _masks(
    annotations: Sequence[dict[str, Any]], size_hw: tuple[int, int]
) -> list[tuple[Rle, float]]:
    """Masks and how often they are chosen; what is no mask of the image is left out."""
    masks = []
    for annotation in annotations:
        try:
            rle = read_mask(annotation, size_hw).segmentation
        except RefusedAnnotationError:
            continue
        if rle.size == size_hw:
            masks.append((rle, float(min(annotation.get("votes", 3), 4))))
    return masks


class SampleSource:
    """Draws augmented samples from several collections of images, in given proportions."""

    def __init__(
        self,
        collections: Sequence[tuple[float, Sequence[LabelledImage]]],
        size: int,
        augmentation: Augmentation,
    ) -> None:
        shares = np.array([share for share, images in collections if images])
        self.shares = shares / shares.sum()
        self.collections = [images for _, images in collections if images]
        self.size = size
        self.augmentation = augmentation

    def sample(self, rng: np.random.Generator, max_masks: int) -> Sample:
        sample = self._plain(rng, max_masks)
        if rng.random() < self.augmentation.paste_probability:
            sample = paste(sample, self._plain(rng, 12), rng)
        return Sample(
            distort_colours(sample.pixels, sample.size_hw, rng), sample.masks, sample.size_hw
        )

    def _plain(self, rng: np.random.Generator, max_masks: int) -> Sample:
        while True:
            images = self.collections[rng.choice(len(self.collections), p=self.shares)]
            image = images[int(rng.integers(len(images)))]
            near = rng.random() < self.augmentation.near_probability
            sample = (
                near_sample(image, self.size, max_masks, rng)
                if near
                else crop_sample(image, self.size, max_masks, rng, self.augmentation)
            )
            if sample is not None and len(sample.masks):
                return sample


def crop_sample(
    image: LabelledImage,
    size: int,
    max_masks: int,
    rng: np.random.Generator,
    augmentation: Augmentation,
) -> Sample:
    """Large-scale jitter: a random window of the image, or the whole of it made smaller."""
    height, width = image.size_hw
    scale = size / max(height, width) * float(np.exp(rng.uniform(np.log(0.7), np.log(2.0))))
    if rng.random() < augmentation.whole_probability:
        scale = size / max(height, width)
    stretch = float(np.exp(rng.uniform(-0.12, 0.12)))
    scale_x, scale_y = scale * stretch, scale / stretch
    out_w = min(size, max(64, round(width * scale_x / 4) * 4))
    out_h = min(size, max(64, round(height * scale_y / 4) * 4))
    crop_w, crop_h = min(width, out_w / scale_x), min(height, out_h / scale_y)
    x0, y0 = rng.uniform(0, width - crop_w), rng.uniform(0, height - crop_h)
    box = (x0, y0, x0 + crop_w, y0 + crop_h)
    masks = [decode_rle(rle) for rle in _in_random_order(image, rng)]
    return _cut_out(image, masks, box, (out_h, out_w), size, max_masks, rng)


def near_sample(
    image: LabelledImage, size: int, max_masks: int, rng: np.random.Generator
) -> Sample | None:
    """The window around a click into a small region, with all regions that lie in it.

    None when the region that is drawn is too large for a window.
    """
    height, width = image.size_hw
    masks = [decode_rle(rle) for rle in _in_random_order(image, rng)]
    side = max(height, width) * CROP_SHARE * float(np.exp(rng.uniform(-0.2, 0.2)))
    crop_w, crop_h = min(width, side), min(height, side)
    x, y = click_in(masks[0], rng)
    x0 = min(max(0.0, x - crop_w / 2), width - crop_w)
    y0 = min(max(0.0, y - crop_h / 2), height - crop_h)
    rows = slice(round(y0), round(y0 + crop_h))
    columns = slice(round(x0), round(x0 + crop_w))
    inside = [mask for mask in masks if mask[rows, columns].sum() >= FITS * mask.sum()]
    if not inside or inside[0] is not masks[0]:
        return None
    scale = size / max(crop_w, crop_h)
    out_hw = (round(crop_h * scale / 4) * 4, round(crop_w * scale / 4) * 4)
    box = (x0, y0, x0 + crop_w, y0 + crop_h)
    return _cut_out(image, inside, box, out_hw, size, max_masks, rng)


def _in_random_order(image: LabelledImage, rng: np.random.Generator) -> list[Rle]:
    weights = np.array(image.weights)
    order = rng.choice(len(weights), size=len(weights), replace=False, p=weights / weights.sum())
    return [image.rles[index] for index in order]


def _cut_out(
    image: LabelledImage,
    masks: Sequence[Mask],
    box: tuple[float, float, float, float],
    out_hw: tuple[int, int],
    size: int,
    max_masks: int,
    rng: np.random.Generator,
) -> Sample:
    """A box of the image at another size, mirrored half of the time, with its first masks."""
    out_h, out_w = out_hw
    flip = rng.random() < 0.5
    with Image.open(image.path) as file:
        resized = file.convert("RGB").resize((out_w, out_h), Image.Resampling.BILINEAR, box=box)
    window = np.asarray(resized)[:, ::-1] if flip else np.asarray(resized)
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:out_h, :out_w] = window

    seen: list[Mask] = []
    for one in masks:
        if len(seen) == max_masks:
            break
        whole = Image.fromarray(one.astype(np.uint8) * 255)
        small = whole.resize((out_w // 4, out_h // 4), Image.Resampling.BOX, box=box)
        coverage = np.asarray(small)[:, ::-1] if flip else np.asarray(small)
        mask = np.zeros((size // 4, size // 4), dtype=bool)
        mask[: out_h // 4, : out_w // 4] = coverage > 127
        if MIN_CELLS <= mask.sum() <= 0.95 * out_h * out_w / 16:
            seen.append(mask)
    return Sample(pixels, _stack(seen, size), (out_h, out_w))


def paste(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Put up to three regions of another image over this one; what they cover is no longer seen."""
    pixels, masks = sample.pixels.copy(), list(sample.masks)
    size = len(pixels)
    fitting = [m for m in other.masks if 20 < m.sum() < 0.2 * m.size]
    for mask in fitting[: int(rng.integers(1, 4))]:
        mask = mask.copy()
        mask[sample.size_hw[0] // 4 :] = False
        mask[:, sample.size_hw[1] // 4 :] = False
        if mask.sum() < 20:
            continue
        soft = Image.fromarray(mask.astype(np.uint8) * 255).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        alpha = np.clip((np.asarray(soft, dtype=np.float32) / 255 - 0.5) * 4 + 0.5, 0, 1)[..., None]
        pixels = (pixels * (1 - alpha) + other.pixels * alpha).astype(np.uint8)
        masks = [m & ~mask for m in masks]
        masks.append(mask)
    masks = [m for m in masks if m.sum() >= MIN_CELLS]
    return Sample(pixels, _stack(masks, size), sample.size_hw)


def distort_colours(pixels: Pixels, size_hw: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Gain, gamma, saturation, sometimes grey, blur or noise; padding stays zero."""
    h, w = size_hw
    seen = pixels[:h, :w].astype(np.float32) / 255
    seen = seen ** np.exp(rng.uniform(-0.25, 0.25)) * np.exp(rng.uniform(-0.12, 0.12, size=3))
    grey = seen.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.05 else np.exp(rng.uniform(-0.5, 0.4))
    seen = grey + (seen - grey) * saturation
    seen = seen.mean() + (seen - seen.mean()) * np.exp(rng.uniform(-0.3, 0.3))
    if rng.random() < 0.15:
        seen = seen + rng.normal(0, rng.uniform(0.01, 0.06), seen.shape)
    out = np.zeros_like(pixels)
    out[:h, :w] = (np.clip(seen, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.1:
        blurred = Image.fromarray(out[:h, :w]).filter(
            ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5))
        )
        out[:h, :w] = np.asarray(blurred)
    return out


def click_in(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """(x, y): the innermost pixel, as an evaluation clicks, or any pixel of the mask."""
    if rng.random() < 0.65:
        distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(distance.argmax(), mask.shape)
    else:
        ys, xs = mask.nonzero()
        chosen = rng.integers(len(ys))
        y, x = ys[chosen], xs[chosen]
    return int(x), int(y)


class ClickBatches(torch.utils.data.IterableDataset[ClickBatch]):
    """Batches for pretraining from `first` on; batch number n is always the same.

    Args:
        places: of a batch, those that this process takes; others may take the rest.
    """

    def __init__(
        self, source: SampleSource, *, seed: int, first: int, places: range, clicks: int
    ) -> None:
        self.source, self.seed, self.first = source, seed, first
        self.places, self.clicks = places, clicks

    def __iter__(self) -> Iterator[ClickBatch]:
        torch.set_num_threads(1)
        index = self.first
        while True:
            yield self.batch(index)
            index += 1

    def batch(self, index: int) -> ClickBatch:
        images, clicks, masks, valid = [], [], [], []
        for place in self.places:
            rng = np.random.default_rng([self.seed, index, place])
            sample = self.source.sample(rng, self.clicks)
            count = len(sample.masks)
            chosen = np.resize(rng.permutation(count), self.clicks)
            images.append(normalise(sample))
            masks.append(sample.masks[chosen])
            clicks.append([click_in(sample.masks[i], rng) for i in chosen])
            valid.append(valid_cells(sample))
        return ClickBatch(
            torch.from_numpy(np.stack(images)),
            torch.tensor(clicks),
            torch.from_numpy(np.stack(masks)),
            torch.from_numpy(np.stack(valid)),
        )


def normalise(sample: Sample) -> NDArray[np.float32]:
    """(3, S, S) as the encoder wants it: padding is zero after normalisation."""
    h, w = sample.size_hw
    tensor = np.zeros((3, *sample.pixels.shape[:2]), dtype=np.float32)
    tensor[:, :h, :w] = ((sample.pixels[:h, :w] - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)
    return tensor


def valid_cells(sample: Sample) -> Mask:
    size = len(sample.pixels) // 4
    valid = np.zeros((size, size), dtype=bool)
    valid[: sample.size_hw[0] // 4, : sample.size_hw[1] // 4] = True
    return valid


def _stack(masks: list[Mask], size: int) -> Mask:
    return np.stack(masks) if masks else np.zeros((0, size // 4, size // 4), dtype=bool)


if __name__ == "__main__":
    main()
