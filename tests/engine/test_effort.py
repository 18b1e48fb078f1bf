"""Sums over what was handed in, made by the database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.database import sqlite_url
from engine.effort import (
    Agreement,
    Effort,
    agreement,
    agreement_by_author,
    effort,
    effort_by_owner,
    effort_over_time,
    latest_by_owner,
    latest_images,
)
from engine.task_tables import TaskKind
from engine.tasks import TaskQueue
from fakes import ManualClock
from records import full_record, mask_record
from stages.records import ImageStatus, Review, Submission, Verdict

ROUND = 1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def queue(tmp_path: Path, tasks_url: str | None, clock: ManualClock) -> Iterator[TaskQueue]:
    queue = TaskQueue(tasks_url or sqlite_url(tmp_path / "tasks.sqlite"), clock=clock)
    yield queue
    queue.close()


def annotate(
    queue: TaskQueue, clock: ManualClock, owner: str, *masks: int, seconds: float = 10.0
) -> None:
    """Hand in the next image: one mask for each number of clicks."""
    lease = queue.claim(owner, ROUND)
    assert lease is not None
    clock.advance(100)
    drawn = tuple(mask_record(number, num_clicks=clicks) for number, clicks in enumerate(masks))
    queue.submit(lease, Submission(masks=drawn, seconds=seconds), review=True)


def settle(queue: TaskQueue, verdict: Verdict, *ious: float) -> None:
    lease = queue.claim("rae", ROUND, TaskKind.REVIEW)
    assert lease is not None
    deleted = sum(iou == 0 for iou in ious)
    review = Review(verdict=verdict, seconds=1, ious=ious, deleted=deleted, added=1, note="so")
    queue.settle(lease, lambda _: review)


def test_effort_adds_up_in_all_by_owner_and_over_time(queue: TaskQueue, clock: ManualClock) -> None:
    queue.add(ROUND, range(6))
    queue.add(ROUND + 1, range(6))
    began = clock.now
    annotate(queue, clock, "ada", 1, 3, seconds=20.0)
    annotate(queue, clock, "ben", 2, seconds=6.0)
    annotate(queue, clock, "ada", 5, 1, seconds=10.0)
    assert effort(queue, ROUND) == Effort(images=3, masks=5, clicks=12, seconds=36.0)
    by_owner = effort_by_owner(queue, ROUND)
    assert by_owner == {
        "ada": Effort(images=2, masks=4, clicks=10, seconds=30.0),
        "ben": Effort(images=1, masks=1, clicks=2, seconds=6.0),
    }
    ada = by_owner["ada"]
    assert (ada.masks_per_image, ada.seconds_per_mask, ada.clicks_per_mask) == (2, 7.5, 2.5)
    first, second = effort_over_time(queue, ROUND, 2)
    assert (first.images, first.masks, first.seconds) == (2, 3, 26.0)
    assert (second.images, second.masks) == (1, 2)
    assert (first.began, first.ended, second.began) == (began + 100, began + 200, began + 300)
    assert len(effort_over_time(queue, ROUND, 24)) == 3


def test_brushed_masks_and_skipped_images_are_told_apart(
    queue: TaskQueue, clock: ManualClock
) -> None:
    queue.add(ROUND, range(2))
    lease = queue.claim("ada", ROUND)
    assert lease is not None
    queue.submit(lease, Submission(masks=full_record().masks, seconds=8.0))
    lease = queue.claim("ada", ROUND)
    assert lease is not None
    queue.submit(lease, Submission(seconds=1.0, status=ImageStatus.SKIPPED, error="dark"))
    done = effort(queue, ROUND)
    assert (done.images, done.skipped, done.masks, done.brushed) == (1, 1, 2, 1)
    assert done.brush_share == 0.5


def test_without_work_everything_is_zero(queue: TaskQueue) -> None:
    queue.add(ROUND, range(2))
    assert effort(queue, ROUND) == Effort()
    assert (Effort().seconds_per_mask, Effort().masks_per_image) == (0, 0)
    assert effort_by_owner(queue, ROUND) == {}
    assert effort_over_time(queue, ROUND, 5) == []
    assert agreement(queue, ROUND, TaskKind.REVIEW) == Agreement()
    assert Agreement().mean_iou == Agreement().share_above_90 == 0
    assert latest_images(queue, ROUND, 3) == []


def test_agreement_is_of_masks_found_good_and_verdicts_are_counted_for_ever(
    queue: TaskQueue, clock: ManualClock
) -> None:
    queue.add(ROUND, range(3))
    annotate(queue, clock, "ada", 1, 1)
    settle(queue, Verdict.GOOD, 1.0, 0.8, 0.0)
    annotate(queue, clock, "ben", 1, seconds=3.0)
    settle(queue, Verdict.REDO, 0.1)
    assert effort_by_owner(queue, ROUND).keys() == {"ada"}  # his is to be done again
    annotate(queue, clock, "ben", 1, 1)
    settle(queue, Verdict.GOOD, 0.95, 0.9)
    annotate(queue, clock, "ada", 1)
    settle(queue, Verdict.REJECT, 0.2)
    found = agreement_by_author(queue, ROUND)
    ada, ben = found["ada"], found["ben"]
    assert (ada.good, ada.redo, ada.reject) == (1, 0, 1)
    assert (ada.compared, ada.deleted, ada.added, ada.above_90, ada.above_75) == (3, 1, 1, 1, 2)
    assert ada.mean_iou == pytest.approx(0.6)
    assert (ben.good, ben.redo, ben.compared, ben.above_90) == (1, 1, 2, 1)
    total = agreement(queue, ROUND, TaskKind.REVIEW)
    assert (total.compared, total.good, total.redo, total.reject) == (5, 2, 1, 1)
    assert agreement(queue, ROUND, TaskKind.AUDIT) == Agreement()


def test_the_latest_images_are_those_with_masks(queue: TaskQueue, clock: ManualClock) -> None:
    queue.add(ROUND, range(10, 15))
    for owner, masks in (("ada", (1,)), ("ada", ()), ("ben", (1,)), ("ada", (1,)), ("ada", (1,))):
        annotate(queue, clock, owner, *masks)
    assert latest_images(queue, ROUND, 3) == [14, 13, 12]
    assert latest_by_owner(queue, ROUND, 2) == {"ada": [14, 13], "ben": [12]}
