"""What a worker process holds while it works: the model, loaded once, and how to read an image."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine import layout
from engine.corpus import CorpusRow
from engine.embeddings import has_embedding, load_embedding, store_embedding
from engine.errors import ConfigError, UnreadableImageError
from engine.ground_truth import GroundTruth
from engine.image_files import read_file
from engine.images import ImageLimits, WorkSize, read_pixels, resize_to_work_size
from engine.store import Store, open_store
from model.checkpoint import Checkpoint, encoder_sha256, load_checkpoint
from model.detector import ObjectDetector, load_detector
from stages.predictor import Image, embed


@dataclass(frozen=True)
class WorkerSpec:
    """All a worker needs to know to start."""

    store_uri: str
    """Of the run's folder."""
    checkpoint: str
    """Path within the run's store, or a name or path that model.checkpoint finds; empty for work
    that needs no model."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    work_size: WorkSize = field(default_factory=WorkSize)
    detector: str = ""
    """Path within the run's store; empty when there is none."""
    keep_embeddings: bool = False
    """Store the embeddings of images, for training and annotators to come."""
    device: str = "cpu"
    threads: int = 1


class WorkerContext:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.store: Store = open_store(spec.store_uri)

    def pin_threads(self) -> None:
        """For a process of its own: workers that share cores must not each use all of them."""
        os.environ["OMP_NUM_THREADS"] = str(self.spec.threads)
        torch.set_num_threads(self.spec.threads)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return load_run_checkpoint(self.store, self.spec.checkpoint, self.spec.device)

    @cached_property
    def detector(self) -> ObjectDetector:
        with self.store.fetch_folder(self.spec.detector) as folder:
            return load_detector(folder).to(self.spec.device).eval()

    @cached_property
    def ground_truth(self) -> GroundTruth:
        return GroundTruth(self.store)

    @cached_property
    def encoder_sha256(self) -> str:
        return encoder_sha256(self.checkpoint.sam)

    def read_image(self, row: CorpusRow) -> Image:
        """The image upright, in RGB, at its work size.

        Raises:
            UnreadableImageError: it is gone, or its bytes have changed, or they make no picture.
            UnavailableImageError: its bytes cannot be had now.
        """
        data = read_file(row.uri)
        if sha256(data).hexdigest() != row.sha256:
            raise UnreadableImageError(
                "unreadable", "the file has changed since the corpus was recorded"
            )
        pixels = read_pixels(data, self.spec.limits)
        return Image(row.image_id, resize_to_work_size(pixels, self.spec.work_size))

    def embedding(self, row: CorpusRow, image: Image | None = None) -> Tensor:
        """(1, C, h, w) of an image, as fp16 holds it: stored or not, the values are the same.

        Args:
            image: what `row` reads as, where the caller has it; otherwise it is read if need be.

        Raises:
            ImageError: as `read_image`.
        """
        values = None
        if self.spec.keep_embeddings:
            values = load_embedding(self.store, self.encoder_sha256, row.sha256)
        if values is None:
            pixels = (image or self.read_image(row)).pixels
            values = embed(self.checkpoint.sam, pixels).cpu().numpy().astype(np.float16)
            if self.spec.keep_embeddings:
                store_embedding(self.store, self.encoder_sha256, row.sha256, values)
        return torch.from_numpy(values).float().to(self.spec.device)

    def keep_embedding(self, row: CorpusRow) -> None:
        """See that the embedding of an image is stored, and read nothing when it is.

        Raises:
            ImageError: as `read_image`.
        """
        if not has_embedding(self.store, self.encoder_sha256, row.sha256):
            self.embedding(row)


def load_run_checkpoint(store: Store, checkpoint: str, device: str = "cpu") -> Checkpoint:
    """A checkpoint of this run, or any other by its name or path."""
    of_run = layout.is_checkpoint(checkpoint) and store.has_folder(checkpoint)
    place: AbstractContextManager[str | Path] = (
        store.fetch_folder(checkpoint) if of_run else nullcontext(checkpoint)
    )
    with place as found:
        try:
            return load_checkpoint(found, device=device)
        except ValueError as error:
            raise ConfigError(str(error)) from error
