"""Rounds that wait for annotators: hand the tasks out, collect the answers, assemble shards.

The simulated annotator is a client of the queue like any other: it claims a task, works on it on
some worker for as long as that takes, and submits under its lease. Whoever answers, the round goes
on when no task is left.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from engine import layout
from engine.context import WorkerContext
from engine.corpus import CorpusRow
from engine.errors import StaleLeaseError, StorageError, UnreadableImageError
from engine.executor import POLL_SECONDS, Done, Executor, Failed, Outcome
from engine.images import WorkSize, work_size_hw
from engine.production import too_many_given_up
from engine.shards import ShardHeader, publish_shard, read_record, read_records
from engine.store import Store
from engine.task_results import TaskResult
from engine.tasks import Lease, TaskQueue
from engine.worker import image_record
from stages.annotator import SimulatedAnnotator, SimulatedAnnotatorConfig
from stages.base import Provenance, StageOutput
from stages.filters import DropReason, Drops
from stages.records import ImageRecord, ImageStatus, Review, Submission, Verdict
from stages.rle import decode_rle
from stages.zoom_in import predictor_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotationUnit:
    """One task, answered by the simulated annotator."""

    row: CorpusRow
    lease: Lease
    header: ShardHeader
    annotator: SimulatedAnnotatorConfig
    max_mask_seconds: float
    zoom_in: bool
    snap: bool
    seed: int
    prefilled: tuple[str, int] | None
    """Shard and row of the image's prefilled masks; None when nothing is prefilled."""

    def run(self, context: WorkerContext) -> Submission:
        try:
            image = context.read_image(self.row)
        except UnreadableImageError as error:
            return Submission(seconds=0.0, status=ImageStatus(error.status), error=str(error))
        truths = context.ground_truth.masks_at(self.row, image.size_hw)
        prefilled = (
            () if self.prefilled is None else read_record(context.store, *self.prefilled).masks
        )
        embedding = context.embedding(self.row, image)
        predictor = predictor_of(
            context.checkpoint.sam,
            image.pixels,
            embedding,
            zoom_in=self.zoom_in,
            snap=self.snap,
        )
        annotator = SimulatedAnnotator(self.annotator, max_mask_seconds=self.max_mask_seconds)
        return annotator.annotate(
            predictor,
            truths,
            prefilled=[decode_rle(mask.segmentation) for mask in prefilled],
            stage=self.header.stage,
            provenance=Provenance(self.header.round, self.header.checkpoint),
            rng=np.random.default_rng([self.seed, self.header.round, self.row.image_id]),
        )


def answer_tasks(
    executor: Executor,
    queue: TaskQueue,
    round_index: int,
    *,
    owner: str,
    unit_of: Callable[[Lease], AnnotationUnit],
    lease_seconds: float,
    max_given_up: int,
    on_task: Callable[[], None],
) -> None:
    """Play annotator until no task of the round is left.

    Args:
        owner: under which the tasks are claimed.
        max_given_up: tasks that may be given up before all of this is given up.
        on_task: called after each task that ended.

    Raises:
        StorageError: something could not be written.
        EngineError: more tasks failed than may be given up; a disk may have been away, so they are
            open again.
    """
    failed: set[int] = set()
    given_up: list[int] = []
    queue.take_back(owner, round_index)  # what a killed run of ours still holds
    with _Renewals(queue, lease_seconds) as held:
        while queue.counts(round_index).left:
            while executor.has_room() and (lease := queue.claim(owner, round_index)) is not None:
                held.add(lease)
                executor.submit(unit_of(lease), alone=lease.image_id in failed)
            for outcome in executor.wait(POLL_SECONDS):
                held.drop(outcome.unit.lease)
                ended = _hand_in(queue, outcome)
                if isinstance(outcome, Failed):
                    failed.add(outcome.unit.lease.image_id)
                    given_up += [outcome.unit.lease.image_id] * ended
                    if len(given_up) > max_given_up:
                        queue.reopen(round_index, given_up)
                        raise too_many_given_up(len(given_up), outcome.unit.row, outcome.error)
                if ended:
                    on_task()


def _hand_in(queue: TaskQueue, outcome: Outcome) -> bool:
    """Whether this ended the task: a failure may leave it open for another attempt."""
    lease = outcome.unit.lease
    try:
        if isinstance(outcome, Done):
            return queue.submit(lease, outcome.result)
        if outcome.storage:
            raise StorageError(outcome.error)
        log.warning("image %d failed: %s", lease.image_id, outcome.error)
        return queue.fail(lease, outcome.error)
    except StaleLeaseError as error:
        log.warning("%s", error)  # somebody else has the task now, and will answer it
        return False


class _Renewals:
    """Keeps leases alive from a thread of its own, however long a task or a wait takes."""

    def __init__(self, queue: TaskQueue, lease_seconds: float) -> None:
        self._queue, self._every = queue, lease_seconds / 3
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "_Renewals":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._held[lease.token] = lease

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._held.pop(lease.token, None)

    def _renew(self) -> None:
        while not self._done.wait(self._every):
            with self._lock:
                for token, lease in list(self._held.items()):
                    try:
                        self._queue.renew(lease)
                    except (StaleLeaseError, StorageError) as error:
                        log.warning("%s", error)
                        del self._held[token]


def assemble_shard(
    store: Store,
    header: ShardHeader,
    rows: list[CorpusRow],
    results: Mapping[int, TaskResult],
    *,
    shards: str,
    proposals: str | None,
    work_size: WorkSize,
) -> bool:
    """Publish one shard of a round whose tasks have ended: prefilled masks, then drawn ones."""
    path = layout.shard_path(shards, header.shard)
    prefilled: Iterator[ImageRecord | None]
    if proposals is None:
        prefilled = iter([None] * len(rows))
    else:
        prefilled = read_records(store, layout.shard_path(proposals, header.shard))
    return publish_shard(
        store,
        path,
        header,
        (
            _record(row, header, results[row.image_id], proposal, work_size)
            for row, proposal in zip(rows, prefilled, strict=True)
        ),
    )


def _record(
    row: CorpusRow,
    header: ShardHeader,
    result: TaskResult,
    proposal: ImageRecord | None,
    work_size: WorkSize,
) -> ImageRecord:
    """A task without an answer keeps what was prefilled; its status says what happened."""
    status = ImageStatus.WITHDRAWN if result.withdrawn else ImageStatus.GIVEN_UP
    unanswered = Submission(seconds=0.0, status=status, error=result.error)
    submission = _reviewed(result.submission or unanswered, result.review)
    locked, drops = ((), Drops()) if proposal is None else (proposal.masks, Drops(proposal.drops))
    kept = tuple(mask for mask in locked if mask.id not in submission.flagged)
    drops[DropReason.FLAGGED] += len(locked) - len(kept)
    together = (*kept, *submission.masks)
    if submission.status is ImageStatus.REJECTED:
        drops[DropReason.REJECTED] += len(together)
        together = ()
    masks = enumerate(together)
    record = image_record(
        row,
        header.stage,
        header.round,
        size_hw=work_size_hw((row.height, row.width), work_size),
        output=StageOutput(
            masks=tuple(mask.model_copy(update={"id": number}) for number, mask in masks),
            drops=drops.as_dict(),
        ),
        worker_seconds=0.0 if proposal is None else proposal.worker_seconds,
    )
    return record.model_copy(
        update={
            "status": submission.status,
            "error": submission.error,
            "annotator_seconds": submission.seconds,
        }
    )


def _reviewed(submission: Submission, review: Review | None) -> Submission:
    """What counts: the masks as a reviewer left them, or as they were handed in."""
    if review is None:
        return submission
    if review.verdict is Verdict.REJECT:
        rejected = {"status": ImageStatus.REJECTED, "error": review.note}
        return submission.model_copy(update=rejected)
    return submission.model_copy(update={"masks": review.masks, "flagged": review.flagged})
