"""A round of people that ends when it has the masks it wants."""

from pathlib import Path

import pytest

import engine.stage_work
from engine.config import EngineConfig
from engine.errors import StaleLeaseError
from engine.run import open_queue
from engine.tasks import Lease, TaskCounts
from offices import PEOPLE, leave, on, open_office
from records import mask_record
from stages.records import ImageStatus, Source, Submission
from tiny_runs import AUTOMATIC, MANUAL, SEMI, TinyRun

TARGET = PEOPLE | {"retrain": False, "target_masks": 3}


def drawn(masks: int) -> Submission:
    return Submission(masks=tuple(mask_record(n) for n in range(masks)), seconds=5.0)


def test_at_the_target_what_is_begun_is_finished_and_the_rest_left_out(
    tmp_path: Path, tasks_url: str | None
) -> None:
    office = open_office(TinyRun(tmp_path, [MANUAL | TARGET], 7, changes=on(tasks_url)))
    queue = office.desk.queue

    def claim(owner: str) -> Lease:
        lease = queue.claim(owner, 0)
        assert lease is not None
        return lease

    first, second, held, begun, gone = (claim(name) for name in ("Ada", "Bob", "Cy", "Di", "Eve"))
    queue.save_draft(begun, "0" * 32, "{}")
    queue.release(begun)
    assert queue.submit(first, drawn(2))
    assert queue.counts(0).withdrawn == 0
    assert queue.submit(second, drawn(1))
    while not queue.counts(0).withdrawn:
        office.thread.join(0.1)
    assert queue.counts(0) == TaskCounts(open=1, leased=2, submitted=2, withdrawn=2)
    again = claim("Fay")
    assert again.image_id == begun.image_id  # a mask of it is saved: somebody finishes it
    assert queue.claim("Fay", 0) is None
    queue.release(gone)  # unbegun, so nobody is asked for it any more
    assert queue.submit(again, drawn(1))
    while queue.counts(0).withdrawn < 3:
        office.thread.join(0.1)
    with pytest.raises(StaleLeaseError):
        queue.submit(gone, drawn(1))
    assert queue.submit(held, drawn(1))
    office.finish()
    by_status: dict[ImageStatus, int] = {}
    for record in office.run.records(0):
        by_status[record.status] = by_status.get(record.status, 0) + 1
        if record.status is ImageStatus.WITHDRAWN:
            assert record.error == "the round has its 3 masks"
            assert record.masks == ()
    assert by_status == {ImageStatus.OK: 4, ImageStatus.WITHDRAWN: 3}
    office.run.assert_whole()
    leave(office)


def test_a_target_met_while_the_run_was_stopped_ends_the_round_when_it_goes_on(
    tmp_path: Path, tasks_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: float) -> None:
        raise KeyboardInterrupt

    rounds = [MANUAL | {"images": 2, "retrain": False}, SEMI | TARGET | {"images": 4}, AUTOMATIC]
    run = TinyRun(tmp_path, rounds, 8, changes=on(tasks_url))
    with monkeypatch.context() as patch:
        patch.setattr(engine.stage_work.time, "sleep", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.run()
    queue = open_queue(run.store, run.config)
    lease = queue.claim("Ada", 1)
    assert lease is not None
    assert queue.submit(lease, drawn(3))
    queue.close()
    run.run()
    records = run.records(1)
    assert [record.status for record in records].count(ImageStatus.WITHDRAWN) == 3
    for record in records:
        if record.status is ImageStatus.WITHDRAWN:
            assert all(mask.source is Source.PREFILLED for mask in record.masks)
    run.assert_whole()
    run.run()  # and once more, to no effect
    assert run.records(1) == records


def test_a_target_without_people_is_refused() -> None:
    source = {"kind": "scenes", "name": "drawn", "count": 4}
    for stage in (MANUAL, AUTOMATIC):
        with pytest.raises(ValueError, match="round 0 has target_masks, but no people"):
            EngineConfig.model_validate(
                {
                    "checkpoint": "sa-tiny",
                    "sources": [source],
                    "rounds": [stage | {"target_masks": 3}],
                }
            )
