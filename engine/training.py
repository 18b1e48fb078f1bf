"""A retraining: sealed shards in, a checkpoint with its lineage out.

Now and then the state of a training is kept in the run's store, replaced as a whole. Whoever runs
the same job again, after whatever death, goes on from there: in this process or on other machines.
"""

import io
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.dataset import ShardDataset, build_index
from engine.errors import EngineError
from engine.manifest import load_manifest
from model.checkpoint import Lineage, save_checkpoint
from model.detector import ObjectDetector, save_detector
from model.detector_training import DetectorTrainer
from model.training import Trainer
from model.transforms import ResizeLongestSide

State = dict[str, Any]
Batch = TypeVar("Batch")
PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together."""

    number: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class TrainingJob(ABC):
    """One training from a parent checkpoint, over all sealed rounds so far."""

    store_uri: str
    config: EngineConfig
    round: int
    parent: str
    """Checkpoint to start from, path within the store."""
    folders: tuple[str, ...]
    """Of the sealed rounds."""
    target: str
    """Where the result is published, path within the store."""

    @property
    def num_ranks(self) -> int:
        return self.config.execution.train_workers

    @property
    def seed(self) -> int:
        """Of this round's training; no two rounds, nor runs of other seeds, draw the same."""
        entropy = [self.config.seed, self.round]
        if (own := self.config.retraining.training.seed) != 0:
            entropy.append(own)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    @property
    def name(self) -> str:
        """Differs when anything that shapes the training differs: kept states go by it."""
        return self._folder.rpartition("/")[2]

    @property
    def state_path(self) -> str:
        return f"{self._folder}/state.pt"

    @property
    def _folder(self) -> str:
        content = f"{self.config.sha256} {self.parent} {self.folders}"
        return layout.training_folder(self.target, sha256(content.encode()).hexdigest())

    def context(self, *, keep_embeddings: bool) -> WorkerContext:
        execution = self.config.execution
        context = WorkerContext(
            WorkerSpec(
                store_uri=self.store_uri,
                checkpoint=self.parent,
                limits=self.config.corpus.limits,
                work_size=self.config.work_size,
                keep_embeddings=keep_embeddings,
                device=execution.device,
                threads=execution.train_threads,
            )
        )
        context.pin_threads()
        return context

    def dataset(self, context: WorkerContext, rank: Rank, *, batch_images: int) -> ShardDataset:
        config = self.config.retraining
        return ShardDataset(
            context=context,
            index=build_index(context.store, self.folders, config.mix),
            mix=config.mix,
            batch_images=batch_images,
            masks_per_image=config.training.masks_per_image,
            seed=self.seed,
            rank=rank.number,
            world_size=rank.world_size,
            frozen_encoder=config.training.freeze_image_encoder,
        )

    def kept(self, context: WorkerContext) -> State | None:
        """The last state that was kept; None at the beginning."""
        if not context.store.exists(self.state_path):
            return None
        data = io.BytesIO(context.store.read(self.state_path))
        # Nothing but tensors and plain values is unpickled.
        state: State = torch.load(data, map_location="cpu", weights_only=True)
        return state

    def keep(self, context: WorkerContext, rank: Rank, state: State) -> None:
        """Raises EngineError when the training has diverged; what was kept before stays."""
        if rank.number == 0:  # all ranks have the same
            if not _is_finite(state):
                raise EngineError(
                    f"the training of {self.target} has diverged before step "
                    f"{state['steps_done']}: weights are no numbers any more; begin another run "
                    "with a lower learning_rate or with max_grad_norm"
                )
            data = io.BytesIO()
            torch.save(state, data)
            context.store.replace(self.state_path, data.getvalue())

    def publish(self, context: WorkerContext, save: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            finished = Path(folder) / Path(self.target).name
            try:
                save(finished)
            except ValueError as error:
                raise EngineError(f"the training of {self.target} failed: {error}") from error
            context.store.publish_folder(self.target, finished)

    @abstractmethod
    def run(self, rank: Rank) -> None:
        """Train to the end and publish the result; called once on every rank."""


def _is_finite(state: Any) -> bool:
    """Whether all tensors of a state, however deep, are numbers."""
    if isinstance(state, Tensor):
        return not state.is_floating_point() or bool(state.isfinite().all())
    if isinstance(state, dict):
        return all(map(_is_finite, state.values()))
    return not isinstance(state, list | tuple) or all(map(_is_finite, state))


class RetrainingJob(TrainingJob):
    """Interactive training of the model itself."""

    def run(self, rank: Rank) -> None:
        config = self.config.retraining
        training = config.training.model_copy(update={"seed": self.seed})
        context = self.context(keep_embeddings=training.freeze_image_encoder)
        dataset = self.dataset(context, rank, batch_images=training.batch_images)
        trainer = Trainer(context.checkpoint.sam, training)
        metrics: dict[str, float] = {}
        if (state := self.kept(context)) is not None:
            trainer.load_state_dict(state)
            metrics = state["metrics"]
        for batch in prefetched(dataset.batch, trainer.steps_done, training.steps):
            metrics = trainer.step(batch)
            if trainer.steps_done % config.save_every_steps == 0:
                self.keep(context, rank, {**trainer.state_dict(), "metrics": metrics})
        if rank.number == 0:
            lineage = self.lineage(context, trainer.steps_done, metrics)
            self.publish(context, lambda folder: save_checkpoint(trainer.sam, folder, lineage))

    def lineage(self, context: WorkerContext, steps: int, metrics: dict[str, float]) -> Lineage:
        manifests = [load_manifest(context.store, folder) for folder in self.folders]
        return Lineage(
            parent=context.checkpoint.label,
            round=self.round,
            stage=self.config.rounds[self.round].stage.value,
            steps=steps,
            shards=tuple(shard.sha256 for manifest in manifests for shard in manifest.shards),
            metrics=metrics,
        )


class DetectorJob(TrainingJob):
    """The object detector of a semi-automatic round, on the embeddings of its checkpoint."""

    @property
    def num_ranks(self) -> int:
        return 1  # a light head: its batches are small, and its gradients are not averaged

    def run(self, rank: Rank) -> None:
        config = self.config.retraining
        training = config.detector_training
        context = self.context(keep_embeddings=True)
        dataset = self.dataset(context, rank, batch_images=training.batch_images)
        embed_dim = context.checkpoint.sam.config.embed_dim
        torch.manual_seed(self.seed)
        detector = ObjectDetector(config.detector.model_copy(update={"embed_dim": embed_dim}))
        trainer = DetectorTrainer(detector.to(context.spec.device), training)
        if (state := self.kept(context)) is not None:
            trainer.load_state_dict(state)
        load = partial(_detector_batch, dataset)
        for embeddings, boxes in prefetched(load, trainer.steps_done, training.steps):
            trainer.step(embeddings, boxes)
            if trainer.steps_done % config.save_every_steps == 0:
                self.keep(context, rank, trainer.state_dict())
        if rank.number == 0:
            self.publish(context, lambda folder: save_detector(trainer.detector, folder))


def _detector_batch(dataset: ShardDataset, step: int) -> tuple[Tensor, list[Tensor]]:
    """(B, C, h, w) embeddings and for each image the (N, 4) boxes of its masks, input frame."""
    examples, parts = zip(*dataset.loaded(step, dataset.embedding), strict=True)
    embeddings = torch.cat(parts)
    image_size = dataset.context.checkpoint.sam.config.image_size
    boxes = []
    for example in examples:
        record = example.record
        transform = ResizeLongestSide((record.height, record.width), image_size)
        xywh = torch.tensor([mask.bbox for mask in record.masks])
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        boxes.append(transform.apply_boxes(xyxy).to(embeddings.device))
    return embeddings, boxes


def prefetched(load: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Batches of steps [start, stop) in order, the next being read while one is trained on."""
    with ThreadPoolExecutor(PREFETCHED_BATCHES) as pool:
        waiting: list[Future[Batch]] = []
        for step in range(start, stop):
            waiting.append(pool.submit(load, step))
            if len(waiting) > PREFETCHED_BATCHES:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
