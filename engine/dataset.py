"""Sealed shards to training batches.

A batch is a function of the seed and its step, nothing else: every epoch is a permutation of all
images, oversampled by stage, and a step takes the next slice of it. Stopping and going on at any
step therefore needs no state, and ranks of a distributed training take disjoint slices.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from engine.context import WorkerContext
from engine.corpus import Corpus
from engine.errors import EngineError, ImageError, UnreadableImageError
from engine.manifest import load_manifest
from engine.shards import read_columns, read_record
from engine.store import Store
from model.training import TrainingBatch
from model.transforms import to_input_square
from stages.records import ImageRecord, ImageStatus, Record, StageName
from stages.rle import decode_rle

log = logging.getLogger(__name__)

T = TypeVar("T")

# Axes: B images, P masks over all of them, S the side of the input square.

PERMUTATION, DRAW = 0, 1
"""Streams of randomness: the order of an epoch, and what is drawn for one of its images."""


class MixConfig(Record):
    """How rounds are mixed. The paper oversamples what people made (section 7.6)."""

    assisted_manual: PositiveInt = 10
    """Times an image of this stage appears in an epoch."""
    semi_automatic: PositiveInt = 10
    fully_automatic: PositiveInt = 1
    scale_jitter: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Large-scale jitter of images that people annotated, relative to filling the input. Automatic
    data is not augmented, nor is anything whose embeddings are stored."""


@dataclass(frozen=True)
class TrainingIndex:
    """Where the images to train on are. One row for each image that has a mask."""

    paths: tuple[str, ...]
    shard: NDArray[np.int32]
    """Index into `paths`."""
    row: NDArray[np.int32]
    repeats: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.row)


def build_index(store: Store, folders: Sequence[str], mix: MixConfig) -> TrainingIndex:
    """The images of sealed rounds that have masks, each as often as its stage is to be seen.

    Of images that nobody finished only prefilled masks are there, confirmed by nobody: left out.
    """
    times = {stage: getattr(mix, stage.value) for stage in StageName}
    paths: list[str] = []
    shards, rows, repeats = [], [], []
    for folder in folders:
        manifest = load_manifest(store, folder)
        for shard in manifest.shards:
            table = read_columns(store, shard.path, ["status", "masks.list.element.id"])
            finished = pc.equal(table["status"], ImageStatus.OK.value).to_numpy()
            has_masks = pc.list_value_length(table["masks"]).to_numpy() > 0
            useful = np.flatnonzero(finished & has_masks)
            shards.append(np.full(len(useful), len(paths)))
            rows.append(useful)
            repeats.append(np.full(len(useful), times[manifest.header.stage]))
            paths.append(shard.path)
    if sum(map(len, rows)) == 0:
        raise EngineError(f"nothing to train on: no mask in {', '.join(folders) or 'any round'}")
    return TrainingIndex(
        paths=tuple(paths),
        shard=np.concatenate(shards).astype(np.int32),
        row=np.concatenate(rows).astype(np.int32),
        repeats=np.concatenate(repeats).astype(np.int32),
    )


@dataclass(frozen=True)
class TrainingExample:
    """One image of a batch, as it is drawn before the model sees it."""

    record: ImageRecord
    masks: tuple[int, ...]
    """Positions of the chosen masks within the record."""
    rng: np.random.Generator


@dataclass
class ShardDataset:
    context: WorkerContext
    """Reads images and, where the encoder is frozen, their embeddings."""
    index: TrainingIndex
    mix: MixConfig
    batch_images: int
    """Per step, over all ranks, of whose number it is a multiple."""
    masks_per_image: int
    seed: int
    rank: int = 0
    world_size: int = 1
    frozen_encoder: bool = False
    _corpus: Corpus = field(init=False)

    def __post_init__(self) -> None:
        self._corpus = Corpus(self.context.store)
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, step: int) -> TrainingBatch:
        """This rank's share of a step."""
        parts = [part for _, part in self.loaded(step, self._load)]
        index = torch.cat([torch.full((len(p.masks),), i) for i, p in enumerate(parts)])
        inputs = torch.stack([part.inputs for part in parts])
        return TrainingBatch(
            masks=torch.cat([part.masks for part in parts]),
            image_index=index,
            valid=torch.stack([part.valid for part in parts]),
            images=None if self.frozen_encoder else inputs,
            embeddings=inputs if self.frozen_encoder else None,
        )

    def examples(self, step: int) -> list[TrainingExample]:
        share = self.batch_images // self.world_size
        first = step * self.batch_images + self.rank * share
        return [self.example(position) for position in range(first, first + share)]

    def loaded(
        self, step: int, load: Callable[[TrainingExample], T]
    ) -> list[tuple[TrainingExample, T]]:
        """A step's examples with what is loaded of each. It goes on without images that cannot be
        read any more: every later attempt would meet them again.

        Raises:
            EngineError: there is none that can be read, or storage refuses one.
        """
        examples = self.examples(step)
        found: list[tuple[TrainingExample, T]] = []
        for example in examples:
            uri = example.record.uri
            try:
                found.append((example, load(example)))
            except UnreadableImageError as error:
                log.warning("step %d without %s, readable when annotated: %s", step, uri, error)
            except ImageError as error:
                raise EngineError(f"cannot train on {uri} now: {error}") from error
        if not found:
            uris = ", ".join(example.record.uri for example in examples)
            raise EngineError(f"no image of training step {step} can be read any more: {uris}")
        return found

    def embedding(self, example: TrainingExample) -> Tensor:
        """(1, C, S/16, S/16)."""
        return self.context.embedding(self._corpus.row(example.record.image_id))

    def example(self, position: int) -> TrainingExample:
        """What stands at a position of the endless sequence of epochs."""
        epoch, place = divmod(position, int(self.index.repeats.sum()))
        entry = int(self._order(epoch)[place])
        record = read_record(
            self.context.store,
            self.index.paths[self.index.shard[entry]],
            int(self.index.row[entry]),
        )
        rng = np.random.default_rng([self.seed, DRAW, position])
        count = min(self.masks_per_image, len(record.masks))
        chosen = rng.choice(len(record.masks), size=count, replace=False)
        return TrainingExample(record, tuple(sorted(chosen.tolist())), rng)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, PERMUTATION, epoch])
        return rng.permutation(np.repeat(np.arange(len(self.index)), self.index.repeats))

    def _load(self, example: TrainingExample) -> "_Loaded":
        record, size = example.record, self.context.checkpoint.sam.config.image_size
        size_hw = (record.height, record.width)
        jittered = not self.frozen_encoder and record.stage is not StageName.FULLY_AUTOMATIC
        if jittered:
            place = _Placement.jittered(size_hw, size, self.mix.scale_jitter, example.rng)
        else:
            place = _Placement.fitting(size_hw, size)
        masks = [decode_rle(record.masks[i].segmentation) for i in example.masks]
        targets = np.zeros((len(masks), size, size), dtype=bool)
        for target, mask in zip(targets, masks, strict=True):
            placed = place.apply(mask.astype(np.uint8) * 255, PillowImage.Resampling.BILINEAR)
            target[: place.size_hw[0], : place.size_hw[1]] = placed > 127
        valid = torch.zeros(size, size, dtype=torch.bool)
        valid[: place.size_hw[0], : place.size_hw[1]] = True
        if self.frozen_encoder:
            inputs = self.embedding(example)[0].cpu()
        else:
            image = self.context.read_image(self._corpus.row(record.image_id))
            inputs = to_input_square(
                place.apply(image.pixels, PillowImage.Resampling.BILINEAR), size
            )
        return _Loaded(inputs, torch.from_numpy(targets), valid)


@dataclass(frozen=True)
class _Loaded:
    inputs: torch.Tensor
    """(3, S, S) image or (C, S/16, S/16) embedding."""
    masks: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True)
class _Placement:
    """A part of an image, and the size it gets at the top left of the input square."""

    region_xyxy: tuple[float, float, float, float]
    size_hw: tuple[int, int]

    @staticmethod
    def fitting(size_hw: tuple[int, int], image_size: int) -> "_Placement":
        return _Placement.scaled(size_hw, image_size, 1.0, np.zeros(2))

    @staticmethod
    def jittered(
        size_hw: tuple[int, int],
        image_size: int,
        scales: tuple[float, float],
        rng: np.random.Generator,
    ) -> "_Placement":
        return _Placement.scaled(size_hw, image_size, rng.uniform(*scales), rng.random(2))

    @staticmethod
    def scaled(
        size_hw: tuple[int, int], image_size: int, scale: float, where: NDArray[np.float64]
    ) -> "_Placement":
        """The image with its longest side at scale x S; what exceeds S is cut off.

        Args:
            where: in [0, 1], which part is kept, from left to right and from top to bottom.
        """
        per_pixel = scale * image_size / max(size_hw)
        kept = [min(side, image_size / per_pixel) for side in size_hw]
        top, left = (
            (side - part) * at for side, part, at in zip(size_hw, kept, where, strict=True)
        )
        # Halves go up, as in ResizeLongestSide: a stored embedding was made in that frame.
        height, width = (min(image_size, max(1, int(part * per_pixel + 0.5))) for part in kept)
        return _Placement((left, top, left + kept[1], top + kept[0]), (height, width))

    def apply(
        self, array: NDArray[np.uint8], resampling: PillowImage.Resampling
    ) -> NDArray[np.uint8]:
        height, width = self.size_hw
        image = PillowImage.fromarray(array)
        return np.array(image.resize((width, height), resampling, box=self.region_xyxy))
