"""A run under way: its folder, its images, its machines, and what every step asks of them."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import (
    Corpus,
    CorpusConfig,
    CorpusRow,
    build_corpus,
    listed_part,
    part_of,
    publish_part,
    scan_image,
)
from engine.database import sqlite_url
from engine.errors import ConfigError, StorageError
from engine.evaluation import evaluate, held_out_rows
from engine.executor import Done, Executor, LocalExecutor, Outcome, run_all
from engine.ground_truth import GroundTruth, build_ground_truth, told_counts
from engine.machines import Machines
from engine.progress import Progress
from engine.store import LocalStore, Store
from engine.tasks import TaskQueue
from stages.evaluation import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What the steps of a run share."""

    store: Store
    config: EngineConfig
    corpus: Corpus
    truth: GroundTruth
    progress: Progress
    machines: Machines

    @contextmanager
    def workers(
        self, checkpoint: str, detector: str = "", *, keep_embeddings: bool = False
    ) -> Iterator[Executor]:
        """
        Args:
            keep_embeddings: in any case; otherwise where the image encoder is frozen.
        """
        execution = self.config.execution
        executor = self.machines.executor(
            WorkerSpec(
                store_uri=self.store.uri,
                checkpoint=checkpoint,
                detector=detector,
                limits=self.config.corpus.limits,
                work_size=self.config.work_size,
                keep_embeddings=keep_embeddings
                or self.config.retraining.training.freeze_image_encoder,
                device=execution.device,
                threads=execution.threads_per_worker,
            )
        )
        try:
            yield executor
        finally:
            executor.close()


def open_run(
    store: Store,
    config: EngineConfig,
    progress: Progress,
    machines: Machines,
) -> Run:
    progress.say(f"run {config.name}: {store.uri}")
    run_parts = partial(_run_parts, store, config.corpus, machines, progress)
    corpus = build_corpus(store, config.sources, config.corpus, run=run_parts)
    truth = build_ground_truth(store, config.sources, corpus)
    progress.say(
        f"corpus: {len(corpus)} images, {len(corpus.select(split='held_out'))} held out, "
        f"{len(corpus) - len(corpus.select())} unusable, {len(truth.image_ids)} with ground truth"
    )
    for source, counts in truth.counts.items():
        if counts["kept"] < counts.total():
            progress.say(f"annotations of {source}: {told_counts(counts)}")
    return Run(store, config, corpus, truth, progress, machines)


def held_out(run: Run) -> list[CorpusRow]:
    wanted = run.config.evaluation
    return held_out_rows(run.corpus, run.truth, wanted.sources, wanted.max_images)


def evaluate_checkpoint(run: Run, checkpoint: str) -> Evaluation | None:
    rows = held_out(run)
    if not rows:
        return None
    name = checkpoint.rpartition("/")[2]
    with (
        run.workers(checkpoint) as executor,
        run.progress.of(f"evaluating {name}", len(rows)) as step,
    ):
        return evaluate(
            executor,
            rows,
            max_masks=run.config.evaluation.max_masks_per_image,
            step=step,
            max_missing=run.config.execution.max_given_up,
        )


@contextmanager
def tasks_of(run: Run) -> Iterator[TaskQueue]:
    queue = open_queue(run.store, run.config)
    try:
        yield queue
    finally:
        queue.close()


def open_queue(
    store: Store, config: EngineConfig, *, lease_seconds: float | None = None
) -> TaskQueue:
    """
    Args:
        lease_seconds: None: what the config gives the simulated annotator.
    """
    execution = config.execution
    return TaskQueue(
        tasks_url(store, config),
        clock=time.time,
        lease_seconds=execution.lease_seconds if lease_seconds is None else lease_seconds,
        max_attempts=execution.max_attempts,
        run_id=run_id(store),
    )


def run_id(store: Store) -> str | None:
    """By which the run's database knows it; None in a folder that an earlier version began and this
    one has not run yet."""
    return store.read(layout.RUN_ID).decode() if store.exists(layout.RUN_ID) else None


def tasks_url(store: Store, config: EngineConfig) -> str:
    """Of the database that holds the annotation queue, drafts and accounts."""
    if config.execution.tasks_url is not None:
        return config.execution.tasks_url
    if isinstance(store, LocalStore):
        return sqlite_url(store.root / layout.TASKS)
    raise ConfigError(
        f"a run in {store.uri} needs execution.tasks_url for its annotation queue: SQLite "
        "lives on a disk; give a PostgreSQL URL, or sqlite:////path on the head's disk"
    )


@dataclass(frozen=True)
class ScanUnit:
    """One part of the corpus, or one image of a part that failed."""

    scan: Callable[..., Any]
    number: int
    """Of the part, or of the image within it."""

    def run(self, context: WorkerContext) -> Any:
        return self.scan(self.number)


def _run_parts(
    store: Store,
    config: CorpusConfig,
    machines: Machines,
    progress: Progress,
    scan: Callable[[int], int],
    parts: Iterable[int],
) -> Iterator[int]:
    """Scan parts of the corpus on all workers; the first alone is not worth starting them, but any
    other alone may be what ended the run before.

    Where a part fails no other is begun until its images were tried one by one: too many of them
    end the scan, and so they do early.
    """
    waiting = deque(ScanUnit(scan, part) for part in parts)
    failed: list[int] = []

    def drawn() -> Iterator[ScanUnit]:
        while waiting and not failed:
            yield waiting.popleft()

    spec = WorkerSpec(store.uri, checkpoint="")
    several = any(unit.number > 0 for unit in waiting)
    executor = machines.executor(spec) if several else LocalExecutor(spec)
    try:
        with progress.of("scanning images", len(waiting)) as step:
            while waiting:
                for outcome in run_all(executor, drawn()):
                    if isinstance(outcome, Done):
                        step()
                        yield outcome.result
                        continue
                    if outcome.storage:
                        raise StorageError(outcome.error)
                    log.warning("part %d is taken apart: %s", outcome.unit.number, outcome.error)
                    failed.append(outcome.unit.number)
                while failed:
                    part = failed.pop()
                    _scan_apart(executor, store, config, part)
                    step()
                    yield part
    finally:
        executor.close()


def _scan_apart(executor: Executor, store: Store, config: CorpusConfig, part: int) -> None:
    """Each image of a part alone: what fails then, too, is given up, and its neighbours are not."""
    images = listed_part(store, part)
    scans = (partial(scan_image, image, config=config) for image in images)
    units = [ScanUnit(scan, number) for number, scan in enumerate(scans)]
    rows = (_row_of(outcome) for outcome in run_all(executor, units))
    publish_part(store, part, part_of(rows, len(images)))


def _row_of(outcome: Outcome) -> CorpusRow:
    row: CorpusRow
    if isinstance(outcome, Done):
        row = outcome.result
    else:
        reason = f"every attempt to scan it failed: {outcome.error}"
        row = outcome.unit.scan(outcome.unit.number, given_up=reason)
    return row
