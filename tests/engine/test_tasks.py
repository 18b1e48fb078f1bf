import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.database import sqlite_url
from engine.drafts import Draft
from engine.errors import StaleLeaseError, StorageError
from engine.task_results import task_results
from engine.task_tables import TaskKind
from engine.tasks import Lease, TaskCounts, TaskQueue
from fakes import ManualClock
from records import mask_record
from stages.records import Review, Submission, Verdict

LEASE_SECONDS = 100.0
ROUND = 2


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def url(tmp_path: Path, tasks_url: str | None) -> str:
    return tasks_url or sqlite_url(tmp_path / "run" / "tasks.sqlite")


@pytest.fixture
def queue(url: str, clock: ManualClock) -> Iterator[TaskQueue]:
    queue = open_queue(url, clock)
    yield queue
    queue.close()


def open_queue(url: str, clock: Callable[[], float]) -> TaskQueue:
    return TaskQueue(url, clock=clock, lease_seconds=LEASE_SECONDS, max_attempts=3)


def answer(seconds: float = 3.5) -> Submission:
    return Submission(masks=(mask_record(0),), seconds=seconds)


def claim(queue: TaskQueue, owner: str = "ann") -> Lease:
    lease = queue.claim(owner, ROUND)
    assert lease is not None
    return lease


def test_tasks_are_handed_out_in_order_once_each(queue: TaskQueue, clock: ManualClock) -> None:
    assert queue.add(ROUND, [30, 10, 20]) == 3
    leases = [claim(queue, owner) for owner in ("ann", "ben", "ann")]
    assert [lease.image_id for lease in leases] == [30, 10, 20]
    assert [lease.owner for lease in leases] == ["ann", "ben", "ann"]
    assert len({lease.token for lease in leases}) == 3
    assert all(lease.expires_at == clock.now + LEASE_SECONDS for lease in leases)
    assert queue.claim("ann", ROUND) is None


def test_adding_again_adds_only_what_is_new(queue: TaskQueue) -> None:
    queue.add(ROUND, [1, 2])
    queue.submit(claim(queue), answer())
    assert queue.add(ROUND, [1, 2, 3]) == 1
    assert queue.counts(ROUND) == TaskCounts(open=2, submitted=1)


def test_rounds_do_not_see_each_other(queue: TaskQueue) -> None:
    queue.add(ROUND, [1])
    queue.add(ROUND + 1, [1, 2])
    assert claim(queue).round == ROUND
    assert queue.claim("ann", ROUND) is None
    assert queue.counts(ROUND + 1) == TaskCounts(open=2)
    assert task_results(queue, ROUND + 1, [1, 2]) == {}


def test_a_submission_ends_its_task_and_is_read_back(queue: TaskQueue) -> None:
    queue.add(ROUND, [1, 2])
    assert queue.submit(claim(queue), answer())
    results = task_results(queue, ROUND, [1, 2])
    assert results.keys() == {1}
    assert results[1].submission == answer()
    assert results[1].error == ""
    assert queue.counts(ROUND) == TaskCounts(open=1, submitted=1)
    assert queue.counts(ROUND).left == 1


def test_submitting_again_under_one_lease_keeps_the_first(
    queue: TaskQueue, clock: ManualClock
) -> None:
    queue.add(ROUND, [1])
    lease = claim(queue)
    assert queue.submit(lease, answer(1.0))
    assert not queue.submit(lease, answer(2.0))
    clock.advance(10 * LEASE_SECONDS)
    assert not queue.submit(lease, answer(3.0))  # late, but it was in time once
    assert task_results(queue, ROUND, [1])[1].submission == answer(1.0)


ACTIONS: dict[str, Callable[[TaskQueue, Lease], object]] = {
    "renew": lambda queue, lease: queue.renew(lease),
    "submit": lambda queue, lease: queue.submit(lease, answer()),
    "release": lambda queue, lease: queue.release(lease),
    "fail": lambda queue, lease: queue.fail(lease, "broke"),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_expired_lease_holds_until_somebody_claims_the_task(
    queue: TaskQueue, clock: ManualClock, action: str
) -> None:
    queue.add(ROUND, [7])
    lease = claim(queue)
    clock.advance(10 * LEASE_SECONDS)
    ACTIONS[action](queue, lease)
    assert (
        queue.counts(ROUND)
        == {
            "renew": TaskCounts(leased=1),
            "submit": TaskCounts(submitted=1),
            "release": TaskCounts(open=1),
            "fail": TaskCounts(open=1),
        }[action]
    )
    if action == "renew":  # and is as good as new
        assert queue.claim("ben", ROUND) is None
        assert queue.submit(lease, answer())


@pytest.mark.parametrize("action", ACTIONS)
def test_a_lease_whose_task_has_passed_on_is_refused(
    queue: TaskQueue, clock: ManualClock, action: str
) -> None:
    queue.add(ROUND, [7])
    late = claim(queue)
    clock.advance(LEASE_SECONDS)
    held = claim(queue, "ben")
    with pytest.raises(StaleLeaseError, match=f"cannot {action} image 7 of round 2.*ann is over"):
        ACTIONS[action](queue, late)
    assert queue.submit(held, answer(9.0))
    with pytest.raises(StaleLeaseError):
        ACTIONS[action](queue, late)
    assert task_results(queue, ROUND, [7])[7].submission == answer(9.0)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_lease_that_was_given_back_is_refused(queue: TaskQueue, action: str) -> None:
    queue.add(ROUND, [7])
    lease = claim(queue)
    queue.release(lease)
    with pytest.raises(StaleLeaseError):
        ACTIONS[action](queue, lease)


@pytest.mark.parametrize("action", ["renew", "release", "fail"])
def test_after_submitting_a_lease_is_good_for_nothing_else(queue: TaskQueue, action: str) -> None:
    queue.add(ROUND, [7])
    lease = claim(queue)
    queue.submit(lease, answer())
    with pytest.raises(StaleLeaseError):
        ACTIONS[action](queue, lease)
    assert queue.counts(ROUND) == TaskCounts(submitted=1)


def test_a_lease_of_another_task_does_not_open_this_one(queue: TaskQueue) -> None:
    queue.add(ROUND, [1, 2])
    first, second = claim(queue), claim(queue)
    forged = second.model_copy(update={"token": first.token})
    with pytest.raises(StaleLeaseError):
        queue.submit(forged, answer())


def test_an_expired_task_is_handed_out_anew(queue: TaskQueue, clock: ManualClock) -> None:
    queue.add(ROUND, [1])
    first = claim(queue)
    clock.advance(LEASE_SECONDS - 1)
    assert queue.claim("ben", ROUND) is None
    clock.advance(1)
    second = claim(queue, "ben")
    assert second.image_id == first.image_id
    assert second.token != first.token


def test_a_renewed_lease_lives_its_full_time_again(queue: TaskQueue, clock: ManualClock) -> None:
    queue.add(ROUND, [1])
    lease = claim(queue)
    for _ in range(5):
        clock.advance(LEASE_SECONDS - 1)
        lease = queue.renew(lease)
        assert lease.expires_at == clock.now + LEASE_SECONDS
    assert queue.claim("ben", ROUND) is None
    assert queue.submit(lease, answer())


def test_a_lease_from_before_its_renewal_is_as_good(queue: TaskQueue, clock: ManualClock) -> None:
    queue.add(ROUND, [1])
    lease = claim(queue)
    clock.advance(LEASE_SECONDS - 1)
    queue.renew(lease)
    clock.advance(LEASE_SECONDS - 1)
    assert queue.submit(lease, answer())


def test_a_released_task_is_open_again_and_nobody_is_to_blame(queue: TaskQueue) -> None:
    queue.add(ROUND, [1])
    for _ in range(10):
        queue.release(claim(queue))
    assert queue.counts(ROUND) == TaskCounts(open=1)


def test_an_owner_that_starts_anew_takes_back_its_own_tasks(queue: TaskQueue) -> None:
    queue.add(ROUND, [1, 2, 3, 4])
    queue.submit(claim(queue), answer())
    lost, others = claim(queue), claim(queue, "ben")
    assert queue.take_back("ann", ROUND) == 1
    assert queue.take_back("ann", ROUND + 1) == 0
    assert queue.counts(ROUND) == TaskCounts(open=2, leased=1, submitted=1)
    with pytest.raises(StaleLeaseError):
        queue.submit(lost, answer())
    assert queue.submit(others, answer())
    assert claim(queue).image_id == lost.image_id


def test_what_a_holder_left_behind_comes_back_to_it_at_once(queue: TaskQueue) -> None:
    queue.add(ROUND, [1, 2, 3])
    lost = queue.claim("ann", ROUND, holder="desk", holding=[])
    again = queue.claim("ann", ROUND, holder="desk", holding=[])
    assert lost is not None
    assert again is not None
    assert (again.task_id, again.token != lost.token) == (lost.task_id, True)
    with pytest.raises(StaleLeaseError):
        queue.submit(lost, answer())
    assert queue.submit(again, answer())


def test_nobody_takes_a_task_from_under_their_own_hands(
    queue: TaskQueue, clock: ManualClock
) -> None:
    queue.add(ROUND, range(9))

    def image(owner: str, holder: str, holding: list[int] | None) -> int | None:
        lease = queue.claim(owner, ROUND, holder=holder, holding=holding)
        return None if lease is None else lease.image_id

    held = queue.claim("ann", ROUND, holder="desk", holding=[])
    assert held is not None
    assert held.image_id == 0
    assert image("ann", "desk", [held.task_id]) == 1  # another page of the same browser
    assert image("ann", "laptop", []) == 2
    assert image("ann", "desk", None) == 3  # a browser that cannot tell
    assert image("ben", "desk", []) == 4
    assert image("ann", "", []) == 5
    assert image("ann", "desk", [held.task_id]) == 1
    assert queue.submit(held, answer())


def test_a_lease_tells_whether_somebody_else_has_had_the_task(queue: TaskQueue) -> None:
    queue.add(ROUND, [1])

    def hands(owner: str, holder: str = "desk") -> int:
        lease = queue.claim(owner, ROUND, holder=holder, holding=[])
        assert lease is not None
        queue.release(lease)
        return lease.hands

    first = hands("ann")
    assert hands("ann", holder="laptop") == first
    theirs = hands("ben")
    assert len({first, theirs, hands("ann")}) == 3


def test_a_queue_of_an_earlier_version_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    url = sqlite_url(tmp_path / "run" / "tasks.sqlite")
    with sqlite3.connect(tmp_path / "run" / "tasks.sqlite") as old:
        old.execute("CREATE TABLE tasks (task_id INTEGER, round INTEGER, state TEXT, image_id INT)")
    with pytest.raises(StorageError, match=r"earlier version: table tasks has no .*holder"):
        TaskQueue(url, clock=clock)


def test_a_task_is_given_up_after_its_last_failure(queue: TaskQueue) -> None:
    queue.add(ROUND, [1])
    for attempt in (1, 2):
        assert not queue.fail(claim(queue), f"broke {attempt} times")
        assert queue.counts(ROUND) == TaskCounts(open=1)
    assert queue.fail(claim(queue), "broke for good")
    assert queue.counts(ROUND) == TaskCounts(given_up=1)
    assert queue.claim("ann", ROUND) is None
    result = task_results(queue, ROUND, [1])[1]
    assert (result.submission, result.error) == (None, "broke for good")


@pytest.mark.parametrize("action", ACTIONS)
def test_the_lease_of_a_task_that_was_given_up_is_refused(queue: TaskQueue, action: str) -> None:
    queue.add(ROUND, [1])
    lease = claim(queue)
    queue.fail(lease, "broke")
    queue.fail(claim(queue), "broke")
    last = claim(queue)
    queue.fail(last, "broke")
    for stale in (lease, last):
        with pytest.raises(StaleLeaseError):
            ACTIONS[action](queue, stale)


def test_a_task_that_failed_and_was_answered_in_the_end_has_its_answer(queue: TaskQueue) -> None:
    queue.add(ROUND, [1])
    queue.fail(claim(queue), "broke once")
    queue.submit(claim(queue), answer())
    assert task_results(queue, ROUND, [1])[1].submission == answer()


def test_a_review_begins_with_a_copy_of_the_masks_and_is_not_for_their_makers(
    queue: TaskQueue,
) -> None:
    queue.add(ROUND, [1, 2])
    begun = claim(queue, "ann")
    queue.save_draft(begun, "a", "by ann")
    queue.release(begun)
    lease = claim(queue, "ben")
    queue.save_draft(lease, "b", "by ben")
    assert queue.submit(lease, answer(), review=True)
    assert not queue.submit(lease, answer(), review=True)
    assert queue.submit(claim(queue, "ben"), answer())
    assert queue.counts(ROUND, TaskKind.REVIEW) == TaskCounts(open=1)
    for maker in ("ann", "ben"):
        assert queue.claim(maker, ROUND, TaskKind.REVIEW) is None
    review = queue.claim("rae", ROUND, TaskKind.REVIEW)
    assert review is not None
    assert (review.subject, review.image_id) == (lease.task_id, lease.image_id)
    assert queue.drafts(review.task_id) == queue.drafts(lease.task_id)
    queue.save_draft(review, "a", "corrected")
    assert [draft.content for draft in queue.drafts(lease.task_id)] == ["by ann", "by ben"]
    again = Review(verdict=Verdict.REDO, note="more", seconds=1.0)
    assert queue.settle(review, lambda _: again)
    assert not queue.settle(review, lambda _: again)
    assert queue.counts(ROUND) == TaskCounts(open=1, submitted=1)
    lease = claim(queue, "ann")
    assert (lease.note, task_results(queue, ROUND, [1])) == ("more", {})
    assert queue.submit(lease, answer(7.0), review=True)
    second = queue.claim("rae", ROUND, TaskKind.REVIEW)
    assert second is not None
    assert [draft.content for draft in queue.drafts(second.task_id)] == ["by ann", "by ben"]
    good = Review(verdict=Verdict.GOOD, seconds=2.0, ious=(1.0,))
    assert queue.settle(second, lambda _: good)
    assert task_results(queue, ROUND, [1])[1].submission == answer(7.0)
    assert task_results(queue, ROUND, [1])[1].review == good


def test_an_expired_task_is_not_taken_from_a_living_page_of_the_same_browser(
    queue: TaskQueue, clock: ManualClock
) -> None:
    queue.add(ROUND, [1, 2])
    asleep = queue.claim("ann", ROUND, holder="desk", holding=[])
    assert asleep is not None
    clock.advance(2 * LEASE_SECONDS)
    other = queue.claim("ann", ROUND, holder="desk", holding=[asleep.task_id])
    assert other is not None
    assert other.task_id != asleep.task_id
    assert queue.claim("ann", ROUND, holder="desk", holding=[asleep.task_id, other.task_id]) is None
    queue.renew(asleep)


def test_nothing_is_saved_between_the_making_of_an_answer_and_its_end(queue: TaskQueue) -> None:
    queue.add(ROUND, [1])
    lease = claim(queue)
    queue.save_draft(lease, "a", "in time")
    with ThreadPoolExecutor(1) as pool:
        late: list[Future[None]] = []

        def made_of(drafts: list[Draft]) -> Submission:
            late.append(pool.submit(queue.save_draft, lease, "b", "late"))
            time.sleep(0.2)
            return Submission(seconds=len(drafts))

        assert queue.submit_saved(lease, made_of)
        with pytest.raises(StaleLeaseError):
            late[0].result()
    assert task_results(queue, ROUND, [1])[1].submission == Submission(seconds=1)
    assert [draft.content for draft in queue.drafts(lease.task_id)] == ["in time"]
    assert not queue.submit_saved(lease, made_of)  # which is not asked again
    assert len(late) == 1


def test_the_task_of_an_audit_is_made_once_with_its_masks(queue: TaskQueue) -> None:
    drafts = [Draft(draft_id=f"{number:032x}", owner="", content="mask") for number in range(3)]
    assert queue.add_audit(ROUND, 1, drafts)
    assert not queue.add_audit(ROUND, 1, drafts[:1])
    assert queue.claim("ann", ROUND) is None
    audit = queue.claim("ann", ROUND, TaskKind.AUDIT)
    assert audit is not None
    assert queue.drafts(audit.task_id) == drafts
    assert queue.counts(ROUND) == TaskCounts()


def test_sixteen_threads_never_hold_the_same_task(queue: TaskQueue) -> None:
    tasks, threads = 160, 16
    queue.add(ROUND, range(tasks))
    held: set[int] = set()
    answered: list[int] = []
    returned: set[int] = set()
    watching = threading.Lock()
    begin = threading.Barrier(threads)

    def work(number: int) -> None:
        begin.wait()
        while (lease := queue.claim(f"annotator {number}", ROUND)) is not None:
            with watching:
                assert lease.image_id not in held
                held.add(lease.image_id)
                gives_back = lease.image_id % 5 == 0 and lease.image_id not in returned
                returned.add(lease.image_id)
            queue.renew(lease)
            with watching:
                held.remove(lease.image_id)
            if gives_back:
                queue.release(lease)
            else:
                assert queue.submit(lease, answer())
                answered.append(lease.image_id)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, number) for number in range(threads)]:
            done.result()
    while (lease := queue.claim("late", ROUND)) is not None:  # given back when all had left
        assert queue.submit(lease, answer())
        answered.append(lease.image_id)
    assert sorted(answered) == list(range(tasks))
    assert queue.counts(ROUND) == TaskCounts(submitted=tasks)


def test_many_add_the_same_tasks_at_the_same_time(url: str, clock: ManualClock) -> None:
    begin = threading.Barrier(8)

    def add(_: int) -> int:
        begin.wait()
        queue = open_queue(url, clock)  # the tables too are made by all of them
        new = queue.add(ROUND, range(50))
        queue.close()
        return new

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 50
    queue = open_queue(url, clock)
    assert queue.counts(ROUND) == TaskCounts(open=50)
    queue.close()


def test_a_new_file_is_opened_while_somebody_writes_to_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    """As two do who open it at the same time; SQLite's own timeout does not cover this."""
    url = sqlite_url(tmp_path / "run" / "tasks.sqlite")
    writer = sqlite3.connect(tmp_path / "run" / "tasks.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_queue, url, clock)
        with pytest.raises(TimeoutError):
            opened.result(timeout=0.2)
        writer.execute("COMMIT")
        queue = opened.result(timeout=5)
    assert queue.add(ROUND, [1]) == 1
    queue.close()
    writer.close()


def test_the_queue_is_opened_while_somebody_writes_in_every_table(
    url: str, clock: ManualClock
) -> None:
    """A server that starts, or a status that is asked for, waits for nobody and stops nobody."""
    first = open_queue(url, clock)
    first.add(ROUND, [1, 2])
    lease = claim(first)
    first.save_draft(lease, "a", "mask")
    with ThreadPoolExecutor(1) as pool:

        def opened_meanwhile(_: list[Draft]) -> Submission:
            pool.submit(lambda: open_queue(url, clock).close()).result(timeout=5)
            return answer()

        assert first.submit_saved(lease, opened_meanwhile)
    first.close()


def test_a_submission_that_arrives_twice_at_once_counts_once(queue: TaskQueue) -> None:
    queue.add(ROUND, range(20))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            lease = claim(queue)
            kept = list(pool.map(lambda n, held=lease: queue.submit(held, answer(n)), range(4)))
            assert sorted(kept) == [False, False, False, True]
            submission = task_results(queue, ROUND, [lease.image_id])[lease.image_id].submission
            assert submission == answer(kept.index(True))


CLAIMS_AND_DIES = """
import os, signal, sys
from engine.tasks import TaskQueue
from stages.records import Review, Submission, Verdict

queue = TaskQueue(sys.argv[1], clock=lambda: 1000.0, lease_seconds=100.0, max_attempts=3)
queue.add(2, [1, 2, 3])
queue.submit(queue.claim("ann", 2), Submission(seconds=4.0))
queue.claim("ann", 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_tasks_outlive_the_process_that_kept_them(url: str, clock: ManualClock) -> None:
    assert subprocess.run([sys.executable, "-c", CLAIMS_AND_DIES, url]).returncode < 0
    queue = open_queue(url, clock)
    assert queue.add(ROUND, [1, 2, 3]) == 0
    assert queue.counts(ROUND) == TaskCounts(open=1, leased=1, submitted=1)
    assert task_results(queue, ROUND, [1])[1].submission == Submission(seconds=4.0)
    assert claim(queue).image_id == 3
    assert queue.claim("ann", ROUND) is None
    clock.advance(LEASE_SECONDS)
    assert {claim(queue).image_id, claim(queue).image_id} == {2, 3}
    queue.close()


def test_results_of_many_images_are_read_at_once(queue: TaskQueue) -> None:
    queue.add(ROUND, range(3000))
    queue.submit(claim(queue), answer())
    assert task_results(queue, ROUND, range(70_000)).keys() == {0}
    assert task_results(queue, ROUND, []) == {}
