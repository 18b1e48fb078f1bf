"""The images that people work on: their pixels, their embeddings, and answers to clicks on them."""

import io
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus, CorpusRow
from engine.embeddings import load_embedding
from engine.errors import UnreadableImageError
from engine.images import MAX_JPEG_SIDE, work_size_hw
from engine.store import Store
from model.transforms import ResizeLongestSide
from stages.crops import BoxXyxy
from stages.records import ImageStatus
from stages.superpixels import SIDE, Superpixels
from stages.threads import compute_alone
from stages.zoom_in import View, carry
from web.encoding import Embed, Seen
from web.open_round import OpenRound
from web.superpixels import WORKERS, Kept, packed

JPEG_QUALITY = 92
MAX_CROPS = 64
"""Whose embeddings are kept: an object's further clicks look at the same one."""
MAX_CUT_UP = 128
"""Images, and as many crops, whose superpixels are kept, some 100 kB each."""


@dataclass(frozen=True)
class NearAnswer:
    """What the model says of a crop."""

    low_res_masks: NDArray[np.float32]
    """(4, s, s) logits of the crop."""
    predicted_iou: NDArray[np.float32]
    """(4,)"""
    carried: NDArray[np.float32]
    """(4, s, s), the logits as they are seen in the whole image: the next prompt's mask."""


class RoundImages:
    def __init__(self, store: Store, config: EngineConfig, embed: Embed) -> None:
        """
        Args:
            embed: where images are embedded that nobody has embedded before.
        """
        self._store, self._config, self._embed = store, config, embed
        self._corpus = Corpus(store)
        limits, work_size = config.corpus.limits, config.work_size
        self._context = WorkerContext(WorkerSpec(store.uri, "", limits, work_size))
        self._crop_embedding = lru_cache(MAX_CROPS)(self._embed_crop)
        # Somebody waits for a crop, seconds at most; images are mostly fetched ahead.
        self._pools = [
            ThreadPoolExecutor(WORKERS, f"superpixels-{i}", compute_alone) for i in range(2)
        ]
        self._of_images, self._of_crops = (
            Kept(self._cut_up, MAX_CUT_UP, pool) for pool in self._pools
        )

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def row(self, image_id: int) -> CorpusRow:
        return self._corpus.row(image_id)

    def size_hw(self, image_id: int) -> tuple[int, int]:
        """At its work size, as people see it and masks are."""
        row = self.row(image_id)
        return work_size_hw((row.height, row.width), self._config.work_size)

    def jpeg(self, image_id: int) -> bytes:
        """The image upright, at its work size.

        Raises:
            ImageError: it cannot be read, is no picture any more, or is too long to be a JPEG.
        """
        image = self._context.read_image(self.row(image_id))
        height, width = image.pixels.shape[:2]
        if max(height, width) > MAX_JPEG_SIDE:
            raise UnreadableImageError(
                ImageStatus.TOO_LARGE,
                f"{width} x {height}: a JPEG has {MAX_JPEG_SIDE} pixels a side at most",
            )
        file = io.BytesIO()
        Picture.fromarray(image.pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def embedding(self, mine: OpenRound, image_id: int) -> NDArray[np.float16]:
        """(C, h, w), of the checkpoint that answers in this round; raises as `jpeg`."""
        row = self.row(image_id)
        values = load_embedding(self._store, mine.decoder.file.encoder_sha256, row.sha256)
        if values is None:
            values = self._embed(mine.checkpoint, Seen(row))
        return np.asarray(values[0])

    def decode(
        self,
        mine: OpenRound,
        image_id: int,
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `DecoderSession.decode`, for a page that cannot decode by itself."""
        embedding = self.embedding(mine, image_id)
        return mine.decoder.decode(embedding, point_coords, point_labels, mask_input)

    def zoom_in(
        self,
        mine: OpenRound,
        image_id: int,
        crop_xyxy: BoxXyxy,
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None,
    ) -> NearAnswer:
        """A second look at a small object.

        Args:
            crop_xyxy: image pixels, right and bottom exclusive.
            point_coords: (N, 2), input frame of the crop.
            mask_input: (s, s) logits of the answer before, in the frame of the whole image.

        Raises:
            ValueError: the crop is empty, or does not lie in the image.
            ImageError: the image cannot be read.
        """
        side = mine.decoder.file.image_size
        whole = View((0, 0), ResizeLongestSide(self.size_hw(image_id), side))
        crop = self._crop(image_id, crop_xyxy, side)
        shown = (
            None
            if mask_input is None
            else carry(torch.from_numpy(mask_input)[None], whole, crop)[0].numpy()
        )
        embedding = self._crop_embedding(mine.checkpoint, image_id, crop)
        masks, iou = mine.decoder.decode(embedding, point_coords, point_labels, shown)
        carried = carry(torch.from_numpy(masks), crop, whole).numpy()
        return NearAnswer(low_res_masks=masks, predicted_iou=iou, carried=carried)

    def _crop(self, image_id: int, crop_xyxy: BoxXyxy, image_size: int) -> View:
        height, width = self.size_hw(image_id)
        x0, y0, x1, y1 = crop_xyxy
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"crop {crop_xyxy}: expected x0, y0, x1, y1 within {width} x {height} pixels"
            )
        return View((x0, y0), ResizeLongestSide((y1 - y0, x1 - x0), image_size))

    def superpixels(self, image_id: int, crop_xyxy: BoxXyxy | None) -> Future[bytes]:
        """`packed`, of the image or of a crop of it; fails as `jpeg` raises.

        Raises:
            ValueError: the crop is empty, or does not lie in the image.
        """
        if crop_xyxy is None:
            return self._of_images((image_id, None))
        return self._of_crops((image_id, self._crop(image_id, crop_xyxy, SIDE)))

    def _cut_up(self, key: tuple[int, View | None]) -> bytes:
        image_id, crop = key
        pixels = self._context.read_image(self.row(image_id)).pixels
        return packed(Superpixels(pixels if crop is None else crop.cut(pixels)))

    def _embed_crop(self, checkpoint: str, image_id: int, crop: View) -> NDArray[np.float16]:
        return np.asarray(self._embed(checkpoint, Seen(self.row(image_id), crop))[0])
