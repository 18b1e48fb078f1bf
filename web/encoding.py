"""The image encoder behind the pages: embeds what nobody has embedded before, and stores it."""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import CorpusRow
from engine.embeddings import Embedding, load_embedding, store_embedding
from engine.errors import UnreadableImageError
from engine.store import Store
from stages.predictor import embed_batch


class Embed(Protocol):
    """Where a desk has images embedded that nobody has embedded before."""

    def __call__(self, checkpoint: str, row: CorpusRow) -> Embedding:
        """
        Args:
            checkpoint: label.

        Raises:
            UnreadableImageError: it cannot be read.
        """


class Encoder:
    """The encoder of one checkpoint at a time; of many threads, one works."""

    def __init__(self, store: Store, config: EngineConfig, *, device: str = "cpu") -> None:
        self._store, self._config, self._device = store, config, device
        self._working = threading.Lock()
        self._checkpoint, self._context = "", WorkerContext(WorkerSpec(store.uri, checkpoint=""))

    def __call__(self, checkpoint: str, row: CorpusRow) -> Embedding:
        (made,) = self.embed_many(checkpoint, [row])
        if isinstance(made, UnreadableImageError):
            raise made
        return made

    def embed_many(
        self, checkpoint: str, rows: Sequence[CorpusRow]
    ) -> list[Embedding | UnreadableImageError]:
        """One for each row, those that are not stored embedded together and stored."""
        with self._working:
            context = self._context_of(checkpoint)
            answers: dict[str, Embedding | UnreadableImageError] = {}
            pixels = {}
            for row in {row.sha256: row for row in rows}.values():
                stored = load_embedding(self._store, context.encoder_sha256, row.sha256)
                if stored is not None:
                    answers[row.sha256] = stored
                    continue
                try:
                    pixels[row.sha256] = context.read_image(row).pixels
                except UnreadableImageError as error:
                    answers[row.sha256] = error
            if pixels:
                made = embed_batch(context.checkpoint.sam, list(pixels.values()))
                for image, values in zip(pixels, made.cpu().numpy(), strict=True):
                    answers[image] = kept = values[None].astype(np.float16)
                    store_embedding(self._store, context.encoder_sha256, image, kept)
        return [answers[row.sha256] for row in rows]

    def _context_of(self, checkpoint: str) -> WorkerContext:
        if checkpoint != self._checkpoint:
            config = self._config
            spec = WorkerSpec(
                store_uri=self._store.uri,
                checkpoint=layout.checkpoint_path(checkpoint.partition("@")[0]),
                limits=config.corpus.limits,
                work_size=config.work_size,
                keep_embeddings=True,
                device=self._device,
            )
            self._checkpoint, self._context = checkpoint, WorkerContext(spec)
        return self._context
