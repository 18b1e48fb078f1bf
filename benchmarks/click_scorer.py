"""Train the scorer of what clicks mean (`model/click_scorer.py`).

    python -m benchmarks.click_scorer --photographs bsds coco --work runs/clicks \
        --out model/click_scorer.safetensors

The folders are COCO-style, `images/` beside `instances.json`. Regions that two people drew (or that
nobody counted) are clicked three times: in their middle, somewhere in their inner half, and
anywhere; and further clicks correct one of the answers, or that to a box. Taught are the IoUs of
what may be answered with that region, in the photograph and in crops of it, which are what a second
look sees (`stages/zoom_in.py`). What is held out (`benchmarks/seed_data.py`) is never trained on;
the figures that are printed are of the held-out images of the split `train`. The clicks of each
photograph are kept in the work folder and not made again when the same command is given again.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor

from benchmarks.kept import arrays_kept, sam_of
from benchmarks.seed_data import LabelledImage, Mask, read_folder
from model.checkpoint import storable_weights
from model.click_scorer import NUM_FACTS, NUM_LOOKS, Clicks, ClickScorer
from model.edge_detector import edge_detector_sha256
from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.click_answers import LEAST_SHARE, MOST_CLICKS, MOST_UNHEEDED
from stages.filters import mask_box
from stages.given import SAMPLES, SURE, given_logits
from stages.predictor import MASK_THRESHOLD, Pixels, Predictor, embed_batch
from stages.prompts import Point, centre_click, error_region
from stages.rle import decode_rle
from stages.snapped_upscale import SnappedUpscale
from stages.superpixels import CORRECTABLE, Superpixels
from stages.unions import DEEPEST, MOST_AROUND
from stages.zoom_in import CROP_SHARE, FITS, View

log = logging.getLogger("click_scorer")

MIN_VOTES, MIN_AREA = 2, 100
MOST_REGIONS = 24
"""Of a photograph, chosen at random."""
CROPS, MOST_IN_CROP = 2, 4
"""Of a photograph, each around a region that it shows; and regions of each."""
PLACES = (2.0, 1.0, 1.0)
"""How often a first click is taught, by the place in its region, see `places_in`: people aim."""
FURTHER_CLICKS = 4
BESIDE_SHARE = 0.3
"""Of further clicks, somewhere in the inner half of what is wrong and not in its middle."""
BOX_SHARE = 0.15
"""Of regions, begun with a box and not with a click."""
BOX_NOISE = 0.05
"""Deviation of its sides, as a share of its width or height."""
BEST_SHARE = 0.35
"""How often the best answer is the one that the next click corrects, if not the next best, ..."""
STEPS, BATCH, LEARNING_RATE, WARMUP, WEIGHT_DECAY = 10_000, 128, 2e-3, 100, 0.05
REGIONS_WEIGHT = 2.0
"""Of the error of regions beside that of the model's outputs."""
WATCHED_SPLIT = "train"


@dataclass(frozen=True)
class TaughtClicks:
    """Of one image, or of many; regions are filled up to MOST_AROUND."""

    clicks: Clicks
    of_outputs: Tensor
    """(B, K) IoU of the model's outputs with what is meant."""
    of_regions: Tensor
    """(B, R)"""
    share: Tensor
    """(B,) how often each is taught."""

    @property
    def is_first(self) -> Tensor:
        """(B,) whether there was nothing before, no box either."""
        with_before, number = self.clicks.facts[:, :, -3], self.clicks.facts[:, 0, -1]
        return (number == 1) & (with_before.amax(dim=1) == 0)

    def __getitem__(self, chosen: Tensor) -> "TaughtClicks":
        return TaughtClicks(
            Clicks(*(one[chosen] for one in self.clicks)),
            self.of_outputs[chosen],
            self.of_regions[chosen],
            self.share[chosen],
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, nargs="+")
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--work", type=Path, required=True, help="clicks and what they gave")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    taught, watched = taught_and_watched(options.photographs)
    log.info("%d images, %d held out", len(taught), len(watched))
    if not taught:
        raise SystemExit("there is no image to train on: all are held out")
    measure = partial(taught_clicks_kept, checkpoint=options.checkpoint, work=options.work)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        clicks = together(list(pool.map(measure, taught)))
        of_watched = list(pool.map(measure, watched))
    scorer = train(clicks, options.steps)
    log.info("%d clicks", len(clicks.of_outputs))
    part = options.out.with_suffix(".part")
    save_file(storable_weights(scorer, torch.float16), part)  # every page gets them
    part.replace(options.out)
    if any(of_watched):
        watched_clicks = together(of_watched)
        is_first = watched_clicks.is_first
        for which, chosen in (("first", is_first), ("further", ~is_first)):
            log.info(json.dumps({which: figures(scorer, watched_clicks[chosen])}))


def taught_and_watched(folders: Sequence[Path]) -> list[list[LabelledImage]]:
    """The photographs that are learnt from, and those on which what is learnt is looked at."""
    return [
        [
            image
            for folder in folders
            for image in read_folder(folder, held_out=held_out, min_votes=MIN_VOTES, split=split)
        ]
        for held_out, split in ((False, None), (True, WATCHED_SPLIT))
    ]


def taught_clicks_kept(
    image: LabelledImage, *, checkpoint: str, work: Path
) -> dict[str, NDArray[np.float32]]:
    regions = MIN_AREA, MOST_REGIONS, CROPS, MOST_IN_CROP, CROP_SHARE, FITS, PLACES
    corrections = FURTHER_CLICKS, BESIDE_SHARE, BOX_SHARE, BOX_NOISE, BEST_SHARE
    told = CORRECTABLE, MOST_AROUND, DEEPEST, NUM_LOOKS, NUM_FACTS
    told_of_clicks = LEAST_SHARE, MOST_CLICKS, MOST_UNHEEDED, SURE, SAMPLES
    made_by = checkpoint, edge_detector_sha256(), regions, corrections, told, told_of_clicks
    return arrays_kept(work, image, made_by, lambda: taught_clicks(sam_of(checkpoint), image))


@torch.inference_mode()
def taught_clicks(sam: Sam, image: LabelledImage) -> dict[str, NDArray[np.float32]]:
    """By the names of `Clicks` and `TaughtClicks`."""
    rng = np.random.default_rng(0)
    with Image.open(image.path) as file:
        pixels = np.asarray(file.convert("RGB"))
    regions = [region for region in map(decode_rle, image.rles) if region.sum() >= MIN_AREA]
    regions = [regions[i] for i in rng.permutation(len(regions))]
    rows = [*rows_of(sam, pixels, regions[:MOST_REGIONS], rng)]
    for view in crops_around(regions, ResizeLongestSide(pixels.shape[:2], sam.config.image_size)):
        shown = [region[view.slices] for region in regions if view.fits(region)]
        rows.extend(rows_of(sam, view.cut(pixels), shown[:MOST_IN_CROP], rng))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}


def crops_around(regions: Sequence[Mask], whole: ResizeLongestSide) -> Iterator[View]:
    """Those that a second look takes at the first regions that fit into them."""
    views = ((View.around(centre_click(region), whole), region) for region in regions)
    return islice((view for view, region in views if view.fits(region)), CROPS)


def rows_of(
    sam: Sam, pixels: Pixels, regions: Sequence[Mask], rng: np.random.Generator
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """All that is taught of an image or a crop."""
    teacher = Teacher(sam, pixels, rng)
    for region in regions:
        yield from teacher.rows(region)


@dataclass(frozen=True)
class Prompted:
    """What somebody has done so far to get a region."""

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box_xyxy: tuple[float, float, float, float] | None = None
    mask: Mask | None = None
    """(H, W) what it gave."""
    logits: Tensor | None = None
    """(s, s) the same, as the model is shown it."""


class Teacher:
    """Clicks regions of an image as people might, and says what all answers would be worth."""

    def __init__(self, sam: Sam, pixels: Pixels, rng: np.random.Generator) -> None:
        self._rng = rng
        self._superpixels = Superpixels(pixels)
        size_hw = pixels.shape[0], pixels.shape[1]
        self._predictor = Predictor(
            sam, size_hw, embed_batch(sam, [pixels]), superpixels=self._superpixels
        )
        self._upscale = SnappedUpscale(self._predictor.transform, self._superpixels)

    def rows(self, region: Mask) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Of the first click at each of three places, and of clicks that correct what the middle
        one gave, or a box."""
        middle, *others = places_in(region, self._rng)
        row, so_far = self._taught(region, Prompted(), middle, 1, PLACES[0])
        yield row
        for place, share in zip(others, PLACES[1:], strict=True):
            yield self._taught(region, Prompted(), place, 1, share)[0]
        if self._rng.random() < BOX_SHARE:
            so_far = self._boxed(region)
        for _ in range(FURTHER_CLICKS):
            error = None if so_far.mask is None else error_region(so_far.mask, region)
            if error is None:
                return
            wrong, label = error
            place = places_in(wrong, self._rng)[int(self._rng.random() < BESIDE_SHARE)]
            row, so_far = self._taught(region, so_far, place, label, 1.0)
            yield row

    def _taught(
        self, region: Mask, before: Prompted, place: Point, label: int, share: float
    ) -> tuple[dict[str, NDArray[np.float32]], Prompted]:
        """What is taught of a click, and what it may have led to."""
        predictor, upscale = self._predictor, self._upscale
        points, labels = (*before.points, place), (*before.labels, label)
        prompts = predictor.prompts(points, labels, before.box_xyxy, before.logits)
        low_res, of_head = predictor.decode(prompts, multimask_output=None)
        clicked = upscale.clicked(points, labels, before.mask)
        candidates = upscale.candidates(low_res, of_head, clicked, threshold=MASK_THRESHOLD)
        ious = ious_with(region, self._superpixels, candidates.masks)
        taken = self._taken(ious)
        mask = upscale.in_image(candidates.masks[:, taken])
        is_output = taken < len(low_res)
        logits = low_res[taken] if is_output else given_logits(mask, predictor.transform)
        after = Prompted(points, labels, before.box_xyxy, mask, logits)
        return filled_up(candidates.known(), ious, share), after

    def _taken(self, ious: NDArray[np.float64]) -> int:
        """Mostly one of the best: whoever clicks sees what is wrong, and scorers err."""
        rank = min(int(self._rng.geometric(BEST_SHARE)), len(ious)) - 1
        return int(np.argsort(-ious, kind="stable")[rank])

    def _boxed(self, region: Mask) -> Prompted:
        """After a box, as people draw them."""
        x0, y0, x1, y1 = mask_box(region)
        sides = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        drawn = np.array([x0, y0, x1, y1]) + self._rng.normal(0, BOX_NOISE, 4) * sides
        box = (float(drawn[0]), float(drawn[1]), float(drawn[2]), float(drawn[3]))
        answer = self._predictor.predict(box_xyxy=box, multimask_output=False)
        return Prompted((), (), box, answer.masks[0], answer.low_res_masks[0])


def places_in(region: Mask, rng: np.random.Generator) -> list[Point]:
    """In its middle, somewhere in its inner half, and anywhere."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    places = [centre_click(region)]
    for least in (depth.max() / 2, 0):
        ys, xs = np.nonzero(region & (depth >= least))
        chosen = rng.integers(len(ys))
        places.append((float(xs[chosen]), float(ys[chosen])))
    return places


def ious_with(region: Mask, superpixels: Superpixels, masks: Mask) -> NDArray[np.float64]:
    """(N,) of masks (A, N), in the superpixels' frame."""
    pixels = superpixels.pixels_of(region)
    shared = pixels @ masks
    ious: NDArray[np.float64] = shared / np.maximum(
        superpixels.areas @ masks + pixels.sum() - shared, 1
    )
    return ious


def filled_up(
    known: Clicks, ious: NDArray[np.float64], share: float
) -> dict[str, NDArray[np.float32]]:
    """One click's numbers, with as many regions as any."""
    looks, areas, facts, with_outputs = (one[0].numpy() for one in known)
    missing = MOST_AROUND - len(areas)
    num_outputs = len(facts)
    return {
        "looks": np.pad(looks, ((0, missing), (0, 0))),
        "areas": np.pad(areas, (0, missing)),
        "facts": facts,
        "ious": np.pad(with_outputs, ((0, missing), (0, 0))),
        "of_outputs": ious[:num_outputs].astype(np.float32),
        "of_regions": np.pad(ious[num_outputs:], (0, missing)).astype(np.float32),
        "share": np.float32(share),
    }


def together(images: Sequence[dict[str, NDArray[np.float32]]]) -> TaughtClicks:
    """Of images some of which may have no region."""
    told = [image for image in images if image]
    numbers = {
        name: torch.from_numpy(np.concatenate([image[name] for image in told])) for name in told[0]
    }
    clicks = Clicks(*(numbers[name] for name in Clicks._fields))
    return TaughtClicks(clicks, numbers["of_outputs"], numbers["of_regions"], numbers["share"])


def train(taught: TaughtClicks, steps: int) -> ClickScorer:
    """By the absolute error of the IoU; in eval mode."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several would wait for each other: the steps are tiny
    scorer = ClickScorer()
    scorer.set_statistics(taught.clicks)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        rate = min(1, (step + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        some = taught[torch.multinomial(taught.share, BATCH, replacement=True)]
        of_outputs, of_regions = errors(scorer, some)
        loss = of_outputs.mean() + REGIONS_WEIGHT * of_regions.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scorer.eval()


def errors(scorer: ClickScorer, taught: TaughtClicks) -> tuple[Tensor, Tensor]:
    """|predicted - true IoU| of all outputs, and of all regions that there are."""
    of_outputs, of_regions, _ = scorer(taught.clicks)
    exists = taught.clicks.areas > 0
    return (
        (of_outputs.sigmoid() - taught.of_outputs).abs(),
        (of_regions.sigmoid() - taught.of_regions)[exists].abs(),
    )


@torch.inference_mode()
def figures(scorer: ClickScorer, watched: TaughtClicks) -> dict[str, float]:
    """Of clicks that were not taught: the mean errors, and the mean IoU of what would be answered
    if the best of the outputs alone, or of all, were."""
    of_outputs, of_regions = errors(scorer, watched)
    exists = watched.clicks.areas > 0
    outputs, regions, _ = scorer(watched.clicks)
    worth = torch.cat((outputs, regions.masked_fill(~exists, -torch.inf)), dim=1)
    ious = torch.cat((watched.of_outputs, watched.of_regions), dim=1)
    of_best = ious.gather(1, worth.argmax(dim=1, keepdim=True))
    of_best_output = watched.of_outputs.gather(1, outputs.argmax(dim=1, keepdim=True))
    numbers = {
        "held_out_error_of_outputs": of_outputs,
        "held_out_error_of_regions": of_regions,
        "held_out_iou_of_best_output": of_best_output,
        "held_out_iou_of_best": of_best,
    }
    return {name: round(float(values.mean()), 4) for name, values in numbers.items()}


if __name__ == "__main__":
    main()
