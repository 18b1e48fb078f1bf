"""Shards of hours, workers that hang, and disks that are away for minutes, in virtual time."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.context import WorkerSpec
from engine.corpus import CorpusRow
from engine.errors import EngineError
from engine.executor import Done, Executor, Failed, Outcome, run_all
from engine.production import MAX_WAITING, Patience, make_shards
from engine.ray_executor import IN_FLIGHT, STUCK_SECONDS, RayExecutor
from engine.shards import ShardHeader
from engine.store import LocalStore
from engine.worker import ShardUnit
from stages.fully_automatic import FullyAutomaticConfig
from stages.records import ImageStatus, StageName
from virtual_ray import install

SPEC = WorkerSpec("run", checkpoint="")
HOUR = 3600.0
SECONDS_AN_IMAGE = 60.0
IMAGES_PER_SHARD, SHARD_SECONDS = 32, 160.0
ROW = CorpusRow(
    image_id=0,
    source="photos",
    source_id="0",
    uri="/photos/0.png",
    file_name="0.png",
    width=9,
    height=9,
    orientation=1,
    size_bytes=1,
    sha256="ab",
    split="train",
    status=ImageStatus.OK,
    reason="",
)


@dataclass(frozen=True)
class Shard:
    images: tuple[int, ...] = (0,) * 256

    def run(self, context: object) -> None:
        raise AssertionError("its cluster is virtual")


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


@pytest.mark.parametrize("seconds", [5.0, 300.0])
def test_storage_of_images_that_is_away_for_minutes_takes_no_shard_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float
) -> None:
    refused: list[ShardUnit] = []

    def work(unit: ShardUnit, actor: int, begins: float) -> tuple[float, Outcome]:
        return _reads_unless(unit, begins, away=(100.0, 100.0 + seconds), refused=refused)

    cluster = install(monkeypatch, work)
    assert sorted(_make(tmp_path, num_shards=64)) == list(range(64))
    assert {unit.part for unit in refused} == {None}
    assert len({unit.path for unit in refused}) <= 8 * IN_FLIGHT + MAX_WAITING
    assert cluster.now < 64 * SHARD_SECONDS / 8 + 2 * seconds + 2 * SHARD_SECONDS


def test_images_that_cannot_be_had_for_half_an_hour_end_the_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(unit: ShardUnit, actor: int, begins: float) -> tuple[float, Outcome]:
        return _reads_unless(unit, begins, away=(100.0, float("inf")), refused=[])

    cluster = install(monkeypatch, work)
    with pytest.raises(EngineError, match="is its disk mounted"):
        _make(tmp_path, num_shards=1000)
    assert cluster.now < HOUR


def test_a_worker_that_has_lost_its_disk_of_images_does_not_take_all_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused: list[ShardUnit] = []

    def work(unit: ShardUnit, actor: int, begins: float) -> tuple[float, Outcome]:
        away = (0.0, float("inf") if actor == 0 else 0.0)
        return _reads_unless(unit, begins, away=away, refused=refused)

    cluster = install(monkeypatch, work)
    assert len(_make(tmp_path, num_shards=400)) == 400
    assert {unit.part for unit in refused} == {None}
    assert len(refused) < 100
    assert cluster.now < 1.2 * 400 * SHARD_SECONDS / 7


def _reads_unless(
    unit: ShardUnit, begins: float, *, away: tuple[float, float], refused: list[ShardUnit]
) -> tuple[float, Outcome]:
    now, seconds = begins, SHARD_SECONDS / IMAGES_PER_SHARD
    for _ in unit.images:
        if away[0] <= now < away[1]:
            refused.append(unit)
            return now + 1.5, Failed(unit, "is its disk mounted?", unavailable=True)
        now += seconds
    return now, Done(unit, True)


def _make(folder: Path, *, num_shards: int) -> list[int]:
    made: list[int] = []
    units = (
        ShardUnit(
            header=ShardHeader(
                stage=StageName.FULLY_AUTOMATIC,
                round=0,
                shard=shard,
                checkpoint="tiny@0123",
                config_sha256="cd",
            ),
            images=(ROW,) * IMAGES_PER_SHARD,
            shards="shards",
            stage_config=FullyAutomaticConfig(),
            seed=0,
        )
        for shard in range(num_shards)
    )
    patience = Patience.of(num_shards * IMAGES_PER_SHARD, max_attempts=3, share=0.1)
    with closing(RayExecutor(SPEC, workers=8)) as executor:
        make_shards(executor, LocalStore(folder), units, patience, made.append)
    return made


def _only(executor: Executor, unit: Shard) -> Outcome:
    executor.submit(unit)
    while not (outcomes := executor.wait(1.0)):
        pass
    (outcome,) = outcomes
    return outcome
