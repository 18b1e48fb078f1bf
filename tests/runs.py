"""The folder of a small run: drawn photographs, what is true of them, and sealed rounds."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine import layout
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus, CorpusConfig, CorpusRow, build_corpus
from engine.ground_truth import GroundTruth, build_ground_truth
from engine.images import WorkSize, work_size_hw
from engine.manifest import PlanHeader, RoundPlan, freeze_plan, seal
from engine.shards import ShardHeader, publish_shard
from engine.sources import CocoSource
from engine.store import LocalStore
from engine.worker import empty_record
from fakes import rectangle, save_tiny_sam
from records import mask_record
from stages.records import ImageRecord, ImageStatus, StageName
from stages.rle import Mask, encode_rle, rle_area, rle_bbox

RED = (255, 0, 0)
SIZES = ((64, 96), (96, 64), (80, 80), (40, 120))


class SmallRun:
    """Every photograph is grey noise with one red square, of which the corpus holds the mask."""

    def __init__(self, folder: Path, num_images: int = 8, *, held_out_fraction: float = 0) -> None:
        self.photos, self.store = folder / "photos", LocalStore(folder / "run")
        (self.photos / "images").mkdir(parents=True)
        images, annotations = [], []
        for number in range(num_images):
            size_hw = SIZES[number % len(SIZES)]
            name, square = f"{number}.png", square_in(size_hw, number)
            Image.fromarray(photograph(square, number)).save(self.photos / "images" / name)
            images.append({"id": number, "file_name": name})
            segmentation = encode_rle(square).model_dump(mode="json")
            annotations.append({"image_id": number, "segmentation": segmentation})
        content = {"images": images, "annotations": annotations}
        (self.photos / "instances.json").write_text(json.dumps(content))
        self.source = CocoSource(name="photos", annotations=str(self.photos / "instances.json"))
        config = CorpusConfig(held_out_fraction=held_out_fraction)
        self.corpus: Corpus = build_corpus(self.store, [self.source], config)
        self.truth: GroundTruth = build_ground_truth(self.store, [self.source], self.corpus)
        self.checkpoint = layout.checkpoint_path("tiny")
        save_tiny_sam(str(self.store.root / self.checkpoint))

    @property
    def rows(self) -> list[CorpusRow]:
        return self.corpus.rows(range(len(self.corpus)))

    def photo(self, row: CorpusRow) -> Path:
        return self.photos / "images" / row.file_name

    def spec(self, **changes: object) -> WorkerSpec:
        return WorkerSpec(self.store.uri, self.checkpoint, **changes)  # type: ignore[arg-type]

    def context(self, **changes: object) -> WorkerContext:
        return WorkerContext(self.spec(**changes))

    def seal_round(
        self,
        index: int,
        stage: StageName,
        image_ids: Sequence[int],
        *,
        without_masks: Sequence[int] = (),
        masks_per_image: int = 1,
        images_per_shard: int = 3,
        work_size: WorkSize | None = None,
    ) -> str:
        """A round whose masks are the true ones; returns its folder."""
        header = PlanHeader(round=index, stage=stage, config_sha256="cd", checkpoint="tiny@01")
        plan = RoundPlan(header, np.asarray(image_ids, dtype=np.int64), images_per_shard)
        folder = layout.round_folder(index, stage)
        freeze_plan(self.store, folder, plan)
        for shard in range(plan.num_shards):
            records = [
                self._record(row, index, stage, masks_per_image, work_size or WorkSize())
                if row.image_id not in without_masks
                else empty_record(row, stage, index, ImageStatus.OK, "")
                for row in self.corpus.rows(plan.shard(shard).tolist())
            ]
            path = layout.shard_path(layout.shards_folder(folder), shard)
            shard_header = ShardHeader(shard=shard, **header.model_dump())
            publish_shard(self.store, path, shard_header, records)
        seal(self.store, folder, plan)
        return folder

    def _record(
        self, row: CorpusRow, index: int, stage: StageName, num_masks: int, work_size: WorkSize
    ) -> ImageRecord:
        height, width = work_size_hw((row.height, row.width), work_size)
        (square,) = self.truth.masks_at(row, (height, width))
        rle = encode_rle(square)
        masks = tuple(
            mask_record(
                number, segmentation=rle, bbox=rle_bbox(rle), area=rle_area(rle), stage=stage
            )
            for number in range(num_masks)
        )
        empty = empty_record(row, stage, index, ImageStatus.OK, "")
        return empty.model_copy(update={"masks": masks, "width": width, "height": height})


def square_in(size_hw: tuple[int, int], seed: int) -> Mask:
    rng = np.random.default_rng(seed)
    side = int(rng.integers(20, min(size_hw) - 8))
    y, x = (int(rng.integers(0, length - side)) for length in size_hw)
    return rectangle(size_hw, y, x, y + side, x + side)


def photograph(square: Mask, seed: int) -> NDArray[np.uint8]:
    grey = np.random.default_rng(seed).integers(100, 120, square.shape, dtype=np.uint8)
    pixels = np.repeat(grey[:, :, None], 3, axis=2)
    pixels[square] = RED
    return pixels
