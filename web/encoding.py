"""The image encoder behind the pages: embeds what nobody has embedded before, and stores it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import CorpusRow
from engine.embeddings import Embedding, load_embedding, store_embedding
from engine.errors import ImageError
from engine.store import Store
from stages.predictor import Pixels, embed_batch
from stages.zoom_in import View


@dataclass(frozen=True)
class Seen:
    """What the encoder is shown: an image, or a crop of it."""

    row: CorpusRow
    crop: View | None = None

    @property
    def key(self) -> tuple[str, View | None]:
        return self.row.sha256, self.crop


class Embed(Protocol):
    """Where a desk has images embedded that nobody has embedded before."""

    def __call__(self, checkpoint: str, seen: Seen) -> Embedding:
        """
        Args:
            checkpoint: label.

        Raises:
            ImageError: it cannot be read.
        """


class Encoder:
    """The encoder of one checkpoint at a time; of many threads, one works."""

    def __init__(self, store: Store, config: EngineConfig, *, device: str = "cpu") -> None:
        self._store, self._config, self._device = store, config, device
        self._working = threading.Lock()
        self._checkpoint, self._context = "", WorkerContext(WorkerSpec(store.uri, checkpoint=""))

    def __call__(self, checkpoint: str, seen: Seen) -> Embedding:
        (made,) = self.embed_many(checkpoint, [seen])
        if isinstance(made, ImageError):
            raise made
        return made

    def embed_many(
        self, checkpoint: str, questions: Sequence[Seen]
    ) -> list[Embedding | ImageError]:
        """One for each, those that are not stored embedded together; crops are never stored."""
        with self._working:
            context = self._context_of(checkpoint)
            answers: dict[tuple[str, View | None], Embedding | ImageError] = {}
            pixels: dict[Seen, Pixels] = {}
            for seen in {seen.key: seen for seen in questions}.values():
                stored = self._stored(context, seen)
                if stored is not None:
                    answers[seen.key] = stored
                    continue
                try:
                    whole = context.read_image(seen.row).pixels
                except ImageError as error:
                    answers[seen.key] = error
                    continue
                pixels[seen] = whole if seen.crop is None else seen.crop.cut(whole)
            if pixels:
                made = embed_batch(context.checkpoint.sam, list(pixels.values()))
                for seen, values in zip(pixels, made.cpu().numpy(), strict=True):
                    answers[seen.key] = kept = values[None].astype(np.float16)
                    if seen.crop is None:
                        store_embedding(self._store, context.encoder_sha256, seen.row.sha256, kept)
        return [answers[seen.key] for seen in questions]

    def _stored(self, context: WorkerContext, seen: Seen) -> Embedding | None:
        if seen.crop is not None:
            return None
        return load_embedding(self._store, context.encoder_sha256, seen.row.sha256)

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
