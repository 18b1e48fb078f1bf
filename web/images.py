"""The images that people work on: their pixels, their embeddings, and answers to clicks on them."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus, CorpusRow
from engine.embeddings import load_embedding
from engine.images import work_size_hw
from engine.store import Store
from web.encoding import Embed
from web.open_round import OpenRound

JPEG_QUALITY = 92


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

    def row(self, image_id: int) -> CorpusRow:
        return self._corpus.row(image_id)

    def size_hw(self, image_id: int) -> tuple[int, int]:
        """At its work size, as people see it and masks are."""
        row = self.row(image_id)
        return work_size_hw((row.height, row.width), self._config.work_size)

    def jpeg(self, image_id: int) -> bytes:
        """The image upright, at its work size.

        Raises:
            UnreadableImageError: the file is gone, or is no picture any more.
        """
        image = self._context.read_image(self.row(image_id))
        file = io.BytesIO()
        Picture.fromarray(image.pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def embedding(self, mine: OpenRound, image_id: int) -> NDArray[np.float16]:
        """(C, h, w), of the checkpoint that answers in this round; raises as `jpeg`."""
        row = self.row(image_id)
        values = load_embedding(self._store, mine.decoder.file.encoder_sha256, row.sha256)
        if values is None:
            values = self._embed(mine.checkpoint, row)
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
