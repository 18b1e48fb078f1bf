import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine import layout
from engine.annotation import AnnotationUnit, answer_tasks, assemble_shard
from engine.context import WorkerContext
from engine.database import sqlite_url
from engine.errors import EngineError, StorageError
from engine.executor import Done, Failed, LocalExecutor, Outcome, Unit, run_unit
from engine.images import WorkSize
from engine.shards import ShardHeader, publish_shard, read_records
from engine.task_results import TaskResult, task_results
from engine.tasks import Lease, TaskCounts, TaskQueue
from engine.worker import empty_record
from fakes import ManualClock
from records import mask_record
from runs import SmallRun
from stages.annotator import SimulatedAnnotatorConfig
from stages.prompts import mask_iou
from stages.records import ImageStatus, Review, Source, StageName, Submission, Verdict
from stages.rle import decode_rle

ROUND = 1
PAINTER = SimulatedAnnotatorConfig(max_clicks=1, max_strokes=200)
"""Clicks once, which an unknowing model answers with noise, and mends it with the brush."""


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path, num_images=4)


@pytest.fixture
def queue(run: SmallRun) -> Iterator[TaskQueue]:
    queue = open_queue(run, time.time)
    yield queue
    queue.close()


def open_queue(run: SmallRun, clock: Callable[[], float], **options: Any) -> TaskQueue:
    queue = TaskQueue(sqlite_url(run.store.root / layout.TASKS), clock=clock, **options)
    queue.add(ROUND, [row.image_id for row in run.rows])
    return queue


def header(shard: int = 0, stage: StageName = StageName.ASSISTED_MANUAL) -> ShardHeader:
    return ShardHeader(
        stage=stage, round=ROUND, shard=shard, checkpoint="tiny@0123", config_sha256="cd"
    )


def unit_of(
    run: SmallRun, lease: Lease, prefilled: tuple[str, int] | None = None
) -> AnnotationUnit:
    return AnnotationUnit(
        row=run.corpus.row(lease.image_id),
        lease=lease,
        header=header(),
        annotator=PAINTER,
        max_mask_seconds=1000,
        zoom_in=False,
        snap=False,
        seed=7,
        prefilled=prefilled,
    )


def answer(run: SmallRun, queue: TaskQueue, executor: Any, **options: Any) -> int:
    """Returns how many tasks were reported to have ended."""
    ended: list[None] = []
    answer_tasks(
        executor,
        queue,
        ROUND,
        owner="simulated",
        unit_of=lambda lease: unit_of(run, lease),
        on_task=lambda: ended.append(None),
        **{"lease_seconds": 600.0, "max_given_up": 3} | options,
    )
    return len(ended)


def results_of(run: SmallRun, queue: TaskQueue) -> dict[int, TaskResult]:
    return task_results(queue, ROUND, [row.image_id for row in run.rows])


@dataclass
class ScriptedExecutor:
    """Does what a script says with each attempt at an image; two at once, last first."""

    context: WorkerContext
    script: Callable[[AnnotationUnit, int], Outcome | None]
    """Of a unit and how often its image was tried before; None: run it."""
    tried: dict[int, int] = field(default_factory=dict)
    alone: list[tuple[int, bool]] = field(default_factory=list)
    _units: list[Any] = field(default_factory=list)

    def has_room(self) -> bool:
        return len(self._units) < 2

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        self._units.append(unit)
        self.alone.append((unit.row.image_id, alone))  # type: ignore[attr-defined]

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._units:
            time.sleep(0.01)
            return []
        unit = self._units.pop()
        before = self.tried.get(unit.row.image_id, 0)
        self.tried[unit.row.image_id] = before + 1
        return [self.script(unit, before) or run_unit(unit, self.context)]

    def close(self) -> None: ...


def nothing_drawn(unit: AnnotationUnit, before: int = 0) -> Outcome:
    return Done(unit, Submission(seconds=1.0))


def test_the_simulated_annotator_answers_every_task(run: SmallRun, queue: TaskQueue) -> None:
    assert answer(run, queue, LocalExecutor(run.spec())) == 4
    assert queue.counts(ROUND) == TaskCounts(submitted=4)
    for row in run.rows:
        submission = results_of(run, queue)[row.image_id].submission
        assert submission is not None
        (mask,) = submission.masks
        (truth,) = run.truth.masks_at(row, (row.height, row.width))
        assert mask_iou(decode_rle(mask.segmentation), truth) >= PAINTER.target_iou
        assert (mask.round, mask.checkpoint) == (ROUND, "tiny@0123")
        assert (mask.source, mask.annotator) == (Source.ANNOTATED, "simulated")
        assert mask.interactions[0].answer.size == (row.height, row.width)


def test_an_image_is_answered_the_same_wherever_and_whenever(
    run: SmallRun, queue: TaskQueue
) -> None:
    lease = queue.claim("simulated", ROUND)
    assert lease is not None
    unit = unit_of(run, lease)
    sent = pickle.loads(pickle.dumps(unit))
    assert run_unit(unit, run.context()) == run_unit(sent, run.context(keep_embeddings=True))


def test_what_is_prefilled_is_not_drawn_again(run: SmallRun, queue: TaskQueue) -> None:
    folder = run.seal_round(0, StageName.SEMI_AUTOMATIC, [0, 1], images_per_shard=2)
    path = layout.shard_path(layout.shards_folder(folder), 0)
    lease = queue.claim("simulated", ROUND)
    assert lease is not None
    unit = unit_of(run, lease, prefilled=(path, 0))
    assert unit.run(run.context()) == Submission(seconds=0.0)


def test_an_image_that_has_changed_is_handed_in_as_unreadable(
    run: SmallRun, queue: TaskQueue
) -> None:
    run.photo(run.rows[2]).write_bytes(b"no photograph")
    answer(run, queue, LocalExecutor(run.spec()))
    submission = results_of(run, queue)[2].submission
    assert submission is not None
    assert submission.status is ImageStatus.UNREADABLE
    assert "changed" in submission.error
    assert submission.masks == ()


def test_a_disk_that_is_away_stops_the_round_and_costs_no_task(
    run: SmallRun, queue: TaskQueue
) -> None:
    run.photos.rename(away := run.photos.with_name("away"))
    with pytest.raises(EngineError, match="is its disk mounted"):
        answer(run, queue, LocalExecutor(run.spec()), max_given_up=1)
    assert queue.counts(ROUND).submitted == 0
    away.rename(run.photos)
    answer(run, queue, LocalExecutor(run.spec()), max_given_up=1)
    assert queue.counts(ROUND) == TaskCounts(submitted=4)


def test_a_task_that_fails_is_tried_again_alone_and_then_given_up(
    run: SmallRun, queue: TaskQueue
) -> None:
    executor = ScriptedExecutor(
        run.context(),
        lambda unit, _: Failed(unit, "its worker died") if unit.row.image_id == 1 else None,
    )
    assert answer(run, queue, executor) == 4
    assert queue.counts(ROUND) == TaskCounts(submitted=3, given_up=1)
    assert results_of(run, queue)[1].error == "its worker died"
    assert [alone for image_id, alone in executor.alone if image_id == 1] == [False, True, True]
    assert not any(alone for image_id, alone in executor.alone if image_id != 1)


def test_a_task_that_fails_once_is_answered_in_the_end_and_counts_once(
    run: SmallRun, queue: TaskQueue
) -> None:
    def once(unit: AnnotationUnit, before: int) -> Outcome:
        return nothing_drawn(unit) if before else Failed(unit, "its worker died")

    assert answer(run, queue, ScriptedExecutor(run.context(), once)) == 4
    assert queue.counts(ROUND) == TaskCounts(submitted=4)


def test_more_failures_than_may_be_given_up_stop_the_run_with_the_cause(
    run: SmallRun, queue: TaskQueue
) -> None:
    executor = ScriptedExecutor(run.context(), lambda unit, _: Failed(unit, "out of memory"))
    with pytest.raises(EngineError, match=r"2 images failed every attempt.*out of memory"):
        answer(run, queue, executor, max_given_up=1)


def test_storage_that_refuses_stops_the_run_at_once(run: SmallRun, queue: TaskQueue) -> None:
    executor = ScriptedExecutor(
        run.context(), lambda unit, _: Failed(unit, "disk full", storage=True)
    )
    with pytest.raises(StorageError, match="disk full"):
        answer(run, queue, executor)
    assert sum(executor.tried.values()) == 1
    assert queue.counts(ROUND).given_up == 0


def test_a_task_that_passed_on_meanwhile_is_not_answered_twice(run: SmallRun) -> None:
    clock = ManualClock()
    queue = open_queue(run, clock, lease_seconds=100.0)

    def too_late_once(unit: AnnotationUnit, before: int) -> Outcome:
        if unit.row.image_id == 1 and before == 0:
            clock.advance(1000)
            for other in [queue.claim("ann", ROUND) for _ in range(4)]:
                if other is not None and other.image_id == 1:
                    queue.submit(other, Submission(seconds=99.0))
                elif other is not None:
                    queue.release(other)
        return nothing_drawn(unit)

    ended = answer(run, queue, ScriptedExecutor(run.context(), too_late_once))
    assert queue.counts(ROUND) == TaskCounts(submitted=4)
    submission = results_of(run, queue)[1].submission
    assert submission is not None
    assert submission.seconds == 99.0
    assert ended == 3
    queue.close()


def test_leases_that_expired_in_ones_sleep_are_claimed_and_answered_anew(run: SmallRun) -> None:
    clock = ManualClock()
    queue = open_queue(run, clock, lease_seconds=100.0)
    slept: list[int] = []

    def sleepy(unit: AnnotationUnit, before: int) -> Outcome:
        if len(slept) < 3:
            slept.append(unit.row.image_id)
            clock.advance(1000)
        return nothing_drawn(unit)

    assert answer(run, queue, ScriptedExecutor(run.context(), sleepy)) == 4
    assert queue.counts(ROUND) == TaskCounts(submitted=4)
    queue.close()


def test_a_task_longer_than_its_lease_is_answered_all_the_same(run: SmallRun) -> None:
    queue = open_queue(run, time.time, lease_seconds=0.5)

    def slow(unit: AnnotationUnit, before: int) -> Outcome:
        if unit.row.image_id == 0:
            time.sleep(1.2)
        return nothing_drawn(unit)

    executor = ScriptedExecutor(run.context(), slow)
    assert answer(run, queue, executor, lease_seconds=0.5) == 4
    assert executor.tried[0] == 1
    queue.close()


def test_leases_of_a_killed_run_do_not_hold_up_the_next(run: SmallRun, queue: TaskQueue) -> None:
    for _ in range(3):
        assert queue.claim("simulated", ROUND) is not None
    began = time.monotonic()
    assert answer(run, queue, ScriptedExecutor(run.context(), nothing_drawn)) == 4
    assert time.monotonic() - began < 60


def test_a_round_whose_tasks_have_ended_needs_no_annotator(run: SmallRun, queue: TaskQueue) -> None:
    answer(run, queue, ScriptedExecutor(run.context(), nothing_drawn))
    assert answer(run, queue, ScriptedExecutor(run.context(), nothing_drawn)) == 0


def submitted(image_id: int, **fields: Any) -> TaskResult:
    given = {"masks": (mask_record(0, round=ROUND),), "seconds": 5.0} | fields
    return TaskResult(image_id=image_id, submission=Submission(**given), error="")


def assemble(run: SmallRun, results: list[TaskResult], **options: Any) -> list[Any]:
    assert assemble_shard(
        run.store,
        header(3),
        run.corpus.rows([result.image_id for result in results]),
        {result.image_id: result for result in results},
        shards="shards",
        **{"proposals": None, "work_size": WorkSize()} | options,
    )
    return list(read_records(run.store, layout.shard_path("shards", 3)))


def test_answers_become_the_rows_of_a_shard(run: SmallRun) -> None:
    records = assemble(run, [submitted(2), submitted(0, masks=())])
    assert [record.image_id for record in records] == [2, 0]
    assert [len(record.masks) for record in records] == [1, 0]
    assert all(record.status is ImageStatus.OK for record in records)
    assert all(record.annotator_seconds == 5.0 for record in records)
    assert all(record.stage is StageName.ASSISTED_MANUAL for record in records)
    row = run.rows[2]
    assert (records[0].width, records[0].height) == (row.width, row.height)
    assert records[0].sha256 == row.sha256


def test_rows_are_in_the_frame_in_which_masks_were_drawn(run: SmallRun) -> None:
    (record,) = assemble(run, [submitted(3)], work_size=WorkSize(max_short_side=20))
    assert (record.width, record.height) == (60, 20)  # of 120 x 40


def test_an_image_that_was_passed_over_or_given_up_says_so(run: SmallRun) -> None:
    results = [
        submitted(0, masks=(), status=ImageStatus.SKIPPED, error="too dark"),
        TaskResult(image_id=1, submission=None, error="its worker died"),
    ]
    skipped, given_up = assemble(run, results)
    assert (skipped.status, skipped.error) == (ImageStatus.SKIPPED, "too dark")
    assert (given_up.status, given_up.error) == (ImageStatus.GIVEN_UP, "its worker died")


def test_prefilled_masks_come_first_and_ids_stay_unique(run: SmallRun) -> None:
    empty = [
        empty_record(row, StageName.SEMI_AUTOMATIC, ROUND, ImageStatus.OK, "") for row in run.rows
    ]
    prefilled = tuple(mask_record(i, source=Source.PREFILLED) for i in range(2))
    proposals = [
        empty[0].model_copy(
            update={"masks": prefilled, "drops": {"duplicate": 4}, "worker_seconds": 2.5}
        ),
        empty[1].model_copy(update={"masks": prefilled[:1]}),
        empty[2],
    ]
    made = header(3, StageName.SEMI_AUTOMATIC)
    publish_shard(run.store, layout.shard_path("proposals", 3), made, proposals)
    results = [
        submitted(0),
        TaskResult(image_id=1, submission=None, error="its worker died"),
        submitted(2),
    ]
    both, given_up, drawn = assemble(run, results, proposals="proposals")
    assert [mask.id for mask in both.masks] == [0, 1, 2]
    assert [mask.source for mask in both.masks] == [
        Source.PREFILLED,
        Source.PREFILLED,
        Source.AUTOMATIC,  # as the fake answer says
    ]
    assert both.drops == {"duplicate": 4}
    assert both.worker_seconds == 2.5
    assert given_up.status is ImageStatus.GIVEN_UP
    assert len(given_up.masks) == 1
    assert [mask.id for mask in drawn.masks] == [0]


def test_what_a_reviewer_leaves_is_what_is_stored(run: SmallRun) -> None:
    empty = [
        empty_record(row, StageName.SEMI_AUTOMATIC, ROUND, ImageStatus.OK, "") for row in run.rows
    ]
    prefilled = tuple(mask_record(i, source=Source.PREFILLED) for i in range(2))
    proposals = [record.model_copy(update={"masks": prefilled}) for record in empty[:2]]
    made = header(3, StageName.SEMI_AUTOMATIC)
    publish_shard(run.store, layout.shard_path("proposals", 3), made, proposals)
    corrected = mask_record(0, annotator="rae", round=ROUND)
    good = Review(verdict=Verdict.GOOD, masks=(corrected,) * 2, flagged=(1,), seconds=1.0)
    reject = Review(verdict=Verdict.REJECT, note="a drawing", seconds=1.0)
    results = [
        submitted(0, flagged=(0,)).model_copy(update={"review": good}),
        submitted(1, flagged=(0,)).model_copy(update={"review": reject}),
    ]
    kept, rejected = assemble(run, results, proposals="proposals")
    assert [mask.annotator for mask in kept.masks] == ["", "rae", "rae"]
    assert kept.drops == {"flagged": 1}
    assert (rejected.masks, rejected.drops) == ((), {"flagged": 1, "rejected": 2})
    assert (rejected.status, rejected.error) == (ImageStatus.REJECTED, "a drawing")


def test_a_shard_is_assembled_once(run: SmallRun) -> None:
    assemble(run, [submitted(0)])
    again = assemble_shard(
        run.store,
        header(3),
        run.corpus.rows([0]),
        {0: submitted(0, masks=())},
        shards="shards",
        proposals=None,
        work_size=WorkSize(),
    )
    assert not again
    (record,) = read_records(run.store, layout.shard_path("shards", 3))
    assert len(record.masks) == 1
