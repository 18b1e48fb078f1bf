"""Shards that take hours, and workers that fail or hang, in virtual time."""

from contextlib import closing
from dataclasses import dataclass

import pytest

from engine.context import WorkerSpec
from engine.executor import Done, Executor, Failed, Outcome, run_all
from engine.ray_executor import STUCK_SECONDS, RayExecutor
from virtual_ray import install

SPEC = WorkerSpec("run", checkpoint="")
HOUR = 3600.0


@dataclass(frozen=True)
class Shard:
    images: tuple[int, ...] = (0,) * 256

    def run(self, context: object) -> None:
        raise AssertionError("its cluster is virtual")


SECONDS_AN_IMAGE = 60.0


def takes_its_time(unit: Shard, actor: int, begins: float) -> tuple[float, Outcome]:
    return begins + SECONDS_AN_IMAGE * len(unit.images), Done(unit, None)


@pytest.mark.parametrize("quick", ["failed", "found done", "one image"])
def test_a_worker_on_a_shard_of_hours_is_not_stuck_because_others_ended_at_once(
    monkeypatch: pytest.MonkeyPatch, quick: str
) -> None:
    first = Shard((0,) if quick == "one image" else (0,) * 256)

    def work(unit: Shard, actor: int, begins: float) -> tuple[float, Outcome]:
        if unit is first and quick == "failed":
            return begins + 1.5, Failed(unit, "no such layer")
        if unit is first and quick == "found done":
            return begins + 0.1, Done(unit, False)
        return takes_its_time(unit, actor, begins)

    cluster = install(monkeypatch, work)
    with closing(RayExecutor(SPEC, workers=2)) as executor:
        units = [first, *(Shard() for _ in range(5))]
        ended = sum(isinstance(outcome, Done) for outcome in run_all(executor, units))
        assert ended == len(units) - (quick == "failed")
        assert cluster.killed == []
        assert cluster.now > 4 * HOUR


def test_one_image_that_never_ends_is_not_given_the_time_of_a_shard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless = Shard((0,))

    def work(unit: Shard, actor: int, begins: float) -> tuple[float, Outcome]:
        ends, outcome = takes_its_time(unit, actor, begins)
        return (float("inf") if unit is endless else ends), outcome

    cluster = install(monkeypatch, work)
    with closing(RayExecutor(SPEC, workers=1)) as executor:
        _only(executor, Shard())
        began = cluster.now
        failed = _only(executor, endless)
    assert isinstance(failed, Failed)
    assert "stuck for" in failed.error
    assert cluster.now - began == pytest.approx(STUCK_SECONDS, abs=2.0)


def test_while_no_unit_is_done_one_that_hangs_is_told_of_and_not_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = install(monkeypatch, lambda unit, *_: (float("inf"), Done(unit, None)))
    with closing(RayExecutor(SPEC, workers=1)) as executor:
        executor.submit(Shard())
        while cluster.now < 5 * HOUR:
            assert executor.wait(60.0) == []
        assert cluster.killed == []
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("Shard has been worked on for 6")
    assert message.endswith(" s on machine 0; no other is done yet")


def _only(executor: Executor, unit: Shard) -> Outcome:
    executor.submit(unit)
    while not (outcomes := executor.wait(1.0)):
        pass
    (outcome,) = outcomes
    return outcome
