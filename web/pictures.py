"""Small pictures of finished work: an image with its masks, for the dashboard."""

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.images import Pixels
from engine.manifest import load_plan
from engine.pictures import overlay
from engine.shards import read_record
from engine.store import Store
from engine.task_results import task_results
from engine.tasks import TaskQueue
from stages.records import Rle
from stages.rle import decode_rle

SIDE = 320
"""The longer one, pixels."""
KEPT = 256
JPEG_QUALITY = 80


class MaskPictures:
    def __init__(self, store: Store, config: EngineConfig, queue: TaskQueue) -> None:
        self._store, self._config, self._queue = store, config, queue
        self._corpus = Corpus(store)
        spec = WorkerSpec(store.uri, "", limits=config.corpus.limits, work_size=config.work_size)
        self._context = WorkerContext(spec)
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._drawing = threading.Lock()

    def jpeg(self, round_index: int, image_id: int) -> bytes | None:
        """None where there are no masks to show yet.

        Raises:
            ImageError: the image cannot be read.
        """
        with self._drawing:  # one at a time: annotators come first
            masks = self._masks(round_index, image_id)
            if masks is None:
                return None
            key = (round_index, image_id, hash(tuple(mask.counts for mask in masks)))
            if key not in self._kept:
                image = self._context.read_image(self._corpus.row(image_id))
                self._kept[key] = _jpeg(image.pixels, masks)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def _masks(self, round_index: int, image_id: int) -> list[Rle] | None:
        """Of the round's shard; before there is one, of what was handed in."""
        if round_index >= len(self._config.rounds):
            return None
        folder = self._config.round_folder(round_index)
        if not self._store.exists(layout.plan_path(folder)):
            return None
        plan = load_plan(self._store, folder)
        place = plan.place(image_id)
        if place is None:
            return None
        path = layout.shard_path(layout.shards_folder(folder), place[0])
        if self._store.exists(path):
            return [m.segmentation for m in read_record(self._store, path, place[1]).masks]
        result = task_results(self._queue, round_index, [image_id]).get(image_id)
        if result is None or result.submission is None:
            return None
        return [mask.segmentation for mask in result.submission.masks]


def _jpeg(pixels: Pixels, masks: Sequence[Rle]) -> bytes:
    """Drawn small, so that hundreds of masks take no longer than a few."""
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    rows = np.arange(size[1]) * height // size[1]
    columns = np.arange(size[0]) * width // size[0]
    drawn = [decode_rle(mask)[np.ix_(rows, columns)] for mask in masks]
    file = io.BytesIO()
    Image.fromarray(overlay(small, drawn)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
