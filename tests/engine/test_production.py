import errno
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import engine.image_files
import engine.worker
from engine import layout
from engine.context import WorkerContext
from engine.errors import EngineError, StorageError
from engine.executor import Done, Failed, LocalExecutor, Outcome, Unit, run_unit
from engine.production import WHOLE_ATTEMPTS, Patience, make_shards
from engine.reading import read_uri
from engine.shards import ShardHeader, read_footer, read_records
from engine.worker import ShardUnit, work_on
from runs import SmallRun
from stages.filters import FilterConfig
from stages.fully_automatic import FullyAutomaticConfig
from stages.records import ImageRecord, ImageStatus, StageName

QUICK = FullyAutomaticConfig(
    points_per_side=2,
    crop_n_layers=0,
    filters=FilterConfig(pred_iou_thresh=-9, stability_score_thresh=0, max_mask_area_fraction=None),
)
PATIENT = Patience(max_attempts=3, max_given_up=3)


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(tmp_path, num_images=8)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.production.PAUSES_SECONDS", (0.0,))


def units_of(run: SmallRun, per_shard: int = 4) -> list[ShardUnit]:
    rows = run.rows
    return [
        ShardUnit(
            header=ShardHeader(
                stage=StageName.FULLY_AUTOMATIC,
                round=1,
                shard=shard,
                checkpoint="tiny@0123",
                config_sha256="cd",
            ),
            images=tuple(rows[start : start + per_shard]),
            shards="shards",
            stage_config=QUICK,
            seed=0,
        )
        for shard, start in enumerate(range(0, len(rows), per_shard))
    ]


def records_in(run: SmallRun, shard: int) -> list[ImageRecord]:
    return list(read_records(run.store, layout.shard_path("shards", shard)))


def make(
    run: SmallRun, executor: Any, units: Iterator[ShardUnit] | list[ShardUnit], **options: Any
) -> list[int]:
    made: list[int] = []
    patience = options.get("patience", PATIENT)
    make_shards(executor, run.store, iter(units), patience, made.append)
    return made


@dataclass
class MortalExecutor:
    """Workers that die of some images; hands outcomes back last first, as machines please."""

    context: WorkerContext
    deadly: Callable[[ShardUnit, int], bool]
    """Of a unit, and how often it was tried before."""
    room: int = 3
    tried: Counter[str] = field(default_factory=Counter)
    alone: dict[str, list[bool]] = field(default_factory=dict)
    _units: list[Any] = field(default_factory=list)

    def has_room(self) -> bool:
        return len(self._units) < self.room

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        self._units.append(unit)
        self.alone.setdefault(unit.path, []).append(alone)  # type: ignore[attr-defined]

    def wait(self, timeout: float) -> list[Outcome]:
        unit = self._units.pop()
        before = self.tried[unit.path]
        self.tried[unit.path] += 1
        if self.deadly(unit, before):
            return [Failed(unit, "its worker died")]
        return [run_unit(unit, self.context)]

    def close(self) -> None:
        assert self._units == []


def kills(*image_ids: int) -> Callable[[ShardUnit, int], bool]:
    return lambda unit, _: any(row.image_id in image_ids for row in unit.images)


@pytest.mark.parametrize(
    ("num_images", "share", "max_given_up"), [(1, 0.1, 0), (3, 0.1, 2), (10, 0.1, 3), (90, 0.1, 9)]
)
def test_a_few_images_may_be_given_up_but_not_all(
    num_images: int, share: float, max_given_up: int
) -> None:
    assert Patience.of(num_images, max_attempts=3, share=share).max_given_up == max_given_up


def test_every_shard_is_made_with_one_row_an_image(run: SmallRun) -> None:
    made = make(run, LocalExecutor(run.spec()), units_of(run, per_shard=3))
    assert sorted(made) == [0, 1, 2]
    records = [record for shard in range(3) for record in records_in(run, shard)]
    assert [record.image_id for record in records] == list(range(8))
    for record, row in zip(records, run.rows, strict=True):
        assert (record.status, record.error) == (ImageStatus.OK, "")
        assert (record.width, record.height) == (row.width, row.height)
        assert (record.sha256, record.uri, record.round) == (row.sha256, row.uri, 1)
        assert len(record.masks) + sum(record.drops.values()) == 4 * 3
        assert record.worker_seconds > 0


def test_masks_do_not_depend_on_the_shard_an_image_is_in(run: SmallRun, tmp_path: Path) -> None:
    make(run, LocalExecutor(run.spec()), units_of(run, per_shard=8))
    together = records_in(run, 0)
    other = SmallRun(tmp_path / "other", num_images=8)
    make(other, LocalExecutor(other.spec()), units_of(other, per_shard=1))
    alone = [records_in(other, shard)[0] for shard in range(8)]
    assert [r.masks for r in together] == [r.masks for r in alone]


def test_units_are_drawn_no_faster_than_there_is_room(run: SmallRun) -> None:
    executor = MortalExecutor(run.context(), kills(), room=2)
    drawn = 0

    def watched() -> Iterator[ShardUnit]:
        nonlocal drawn
        for unit in units_of(run, per_shard=1):
            assert drawn - sum(executor.tried.values()) <= 2
            drawn += 1
            yield unit

    assert len(make(run, executor, watched())) == 8


def test_a_shard_whose_worker_died_once_is_simply_made_again(run: SmallRun) -> None:
    executor = MortalExecutor(run.context(), lambda unit, before: before == 0)
    assert sorted(make(run, executor, units_of(run))) == [0, 1]
    assert executor.tried == {
        layout.shard_path("shards", 0): 2,
        layout.shard_path("shards", 1): 2,
    }
    assert all(r.status is ImageStatus.OK for s in (0, 1) for r in records_in(run, s))


def test_a_poisoned_image_costs_its_own_row_only(run: SmallRun) -> None:
    executor = MortalExecutor(run.context(), kills(2))
    assert sorted(make(run, executor, units_of(run))) == [0, 1]
    executor.close()
    records = records_in(run, 0)
    assert [record.image_id for record in records] == [0, 1, 2, 3]
    assert [record.status for record in records] == [
        ImageStatus.OK,
        ImageStatus.OK,
        ImageStatus.GIVEN_UP,
        ImageStatus.OK,
    ]
    assert records[2].error == "its worker died"
    assert records[2].masks == ()
    assert all(records[i].masks for i in (0, 1, 3))
    assert read_footer(run.store, layout.shard_path("shards", 0)).num_images == 4
    assert all(record.status is ImageStatus.OK for record in records_in(run, 1))
    assert executor.tried[layout.shard_path("shards", 0)] == WHOLE_ATTEMPTS
    assert executor.tried[layout.shard_path("shards", 0, part=2)] == PATIENT.max_attempts
    assert executor.tried[layout.shard_path("shards", 0, part=0)] == 1


def test_what_has_failed_once_is_tried_alone(run: SmallRun) -> None:
    executor = MortalExecutor(run.context(), kills(2))
    make(run, executor, units_of(run))
    assert executor.alone[layout.shard_path("shards", 0)] == [False, True]
    assert executor.alone[layout.shard_path("shards", 0, part=2)] == [True] * 3
    assert executor.alone[layout.shard_path("shards", 1)] == [False]


def test_several_poisoned_images_in_several_shards_are_all_isolated(run: SmallRun) -> None:
    executor = MortalExecutor(run.context(), kills(1, 3, 5))
    assert sorted(make(run, executor, units_of(run))) == [0, 1]
    records = [record for shard in (0, 1) for record in records_in(run, shard)]
    assert [record.image_id for record in records] == list(range(8))
    given_up = [r.image_id for r in records if r.status is ImageStatus.GIVEN_UP]
    assert given_up == [1, 3, 5]


def test_an_image_that_raises_is_given_up_with_what_it_raised(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(context: Any, stage: Any, row: Any, *rest: Any, **named: Any) -> ImageRecord:
        if row.image_id == 6:
            raise RuntimeError("no such\nlayer")
        return work_on(context, stage, row, *rest, **named)

    monkeypatch.setattr(engine.worker, "work_on", raising)
    make(run, LocalExecutor(run.spec()), units_of(run))
    record = records_in(run, 1)[2]
    assert record.status is ImageStatus.GIVEN_UP
    assert record.error.startswith("RuntimeError: no such layer (test_production.py:")


def test_an_image_that_storage_refuses_is_given_up(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = str(run.photo(run.rows[5]))

    def refusing(uri: str) -> bytes:
        if uri == broken:
            raise OSError(errno.EIO, "Input/output error")
        return read_uri(uri)

    monkeypatch.setattr(engine.image_files, "read_patiently", refusing)
    make(run, LocalExecutor(run.spec()), units_of(run))
    record = records_in(run, 1)[1]
    assert record.status is ImageStatus.GIVEN_UP
    assert "Input/output error" in record.error


def test_a_disk_that_was_away_for_less_than_the_round_costs_no_image(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, outage = (
        str(run.photo(run.rows[1])),
        2 * (1 + WHOLE_ATTEMPTS) + 4 * PATIENT.max_attempts,
    )

    def away(uri: str) -> bytes:
        nonlocal outage
        outage -= 1
        if outage >= 0 or uri == broken:
            raise OSError(errno.EIO, "Input/output error")
        return read_uri(uri)

    monkeypatch.setattr(engine.image_files, "read_patiently", away)
    executor = MortalExecutor(run.context(), kills(7), room=1)
    patience = Patience(PATIENT.max_attempts, max_given_up=5)
    made = make(run, executor, units_of(run, per_shard=2), patience=patience)
    assert sorted(made) == [0, 1, 2, 3]
    records = [record for shard in range(4) for record in records_in(run, shard)]
    given_up = {r.image_id: r.error for r in records if r.status is not ImageStatus.OK}
    assert sorted(given_up) == [1, 7]
    assert "Input/output error" in given_up[1]
    alone = [path for path in executor.tried if "-alone/" in path]
    assert sorted(executor.tried[path] for path in alone) == [1, 3, 4, 4, 4, 4]
    assert executor.tried[layout.shard_path("shards", 3, part=1)] == PATIENT.max_attempts


def test_an_image_that_has_gone_has_its_row_at_once(run: SmallRun) -> None:
    run.photo(run.rows[1]).unlink()
    executor = MortalExecutor(run.context(), kills())
    make(run, executor, units_of(run))
    gone = records_in(run, 0)[1]
    assert (gone.status, gone.error) == (ImageStatus.UNREADABLE, "no such file")
    assert set(executor.tried.values()) == {1}


@pytest.mark.parametrize("as_uris", [True, False])
@pytest.mark.parametrize("mount_point_stays", [True, False])
def test_a_disk_that_is_away_stops_the_run_and_loses_no_image(
    run: SmallRun, mount_point_stays: bool, as_uris: bool
) -> None:
    units = units_of(run)
    if as_uris:
        for number, unit in enumerate(units):
            uris = [Path(row.uri).absolute().as_uri() for row in unit.images]
            named = zip(unit.images, uris, strict=True)
            rows = tuple(row.model_copy(update={"uri": uri}) for row, uri in named)
            units[number] = replace(unit, images=rows)
    disk = run.photo(run.rows[0]).parent
    disk.rename(away := disk.with_name("away"))
    if mount_point_stays:
        disk.mkdir()
    patience = Patience(max_attempts=2, max_given_up=len(run.rows) - 1)  # a whole shard and more
    with pytest.raises(EngineError, match="is its disk mounted"):
        make(run, LocalExecutor(run.spec()), units, patience=patience)
    away.rename(disk)
    assert sorted(make(run, LocalExecutor(run.spec()), units)) == [0, 1]
    records = records_in(run, 0) + records_in(run, 1)
    assert {record.status for record in records} == {ImageStatus.OK}


def test_an_image_that_has_changed_has_its_row_at_once(run: SmallRun) -> None:
    run.photo(run.rows[1]).write_bytes(run.photo(run.rows[0]).read_bytes())
    executor = MortalExecutor(run.context(), kills())
    make(run, executor, units_of(run))
    changed = records_in(run, 0)[1]
    assert changed.status is ImageStatus.UNREADABLE
    assert "has changed since the corpus was recorded" in changed.error
    assert (changed.width, changed.height) == (run.rows[1].width, run.rows[1].height)
    assert set(executor.tried.values()) == {1}


def test_more_failures_than_patience_allows_stop_the_run_with_the_cause(run: SmallRun) -> None:
    executor = MortalExecutor(run.context(), kills(0, 1, 2, 3))
    impatient = Patience(max_attempts=2, max_given_up=2)
    with pytest.raises(EngineError) as stop:
        make(run, executor, units_of(run), patience=impatient)
    message = str(stop.value)
    assert "3 images failed every attempt" in message
    assert "its worker died" in message
    assert "execution.max_given_up" in message
    assert not run.store.exists(layout.shard_path("shards", 0))


def test_a_run_where_nothing_works_any_more_stops_before_its_patience_does(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.production.MAX_FAILURES_IN_A_ROW", 10)
    endless = Patience(max_attempts=3, max_given_up=8)
    all_of_them = kills(*range(8))
    make(run, MortalExecutor(run.context(), all_of_them), units_of(run)[:1], patience=endless)
    monkeypatch.setattr("engine.production.LONGEST_STALL_SECONDS", 0.0)
    with pytest.raises(EngineError, match=r"11 attempts in a row failed, .*its worker died"):
        make(run, MortalExecutor(run.context(), all_of_them), units_of(run)[1:], patience=endless)


def test_patience_grows_with_the_round_but_never_below_three() -> None:
    assert Patience.of(1000, max_attempts=3, share=0.1).max_given_up == 100
    assert Patience.of(10, max_attempts=3, share=0.1).max_given_up == 3
    assert Patience.of(10, max_attempts=3, share=0.0).max_given_up == 3


def test_storage_that_refuses_a_shard_stops_the_run_at_once(run: SmallRun) -> None:
    run.store.publish("shards", b"a file where the shards' folder should be")
    executor = MortalExecutor(run.context(), kills(), room=1)
    with pytest.raises(StorageError, match="cannot write shards/shard-000000"):
        make(run, executor, units_of(run))
    assert sum(executor.tried.values()) == 1


def test_a_shard_that_exists_is_not_made_again(run: SmallRun) -> None:
    units = units_of(run)
    make(run, LocalExecutor(run.spec()), units[:1])
    path = layout.shard_path("shards", 0)
    before = run.store.read(path)
    make(run, LocalExecutor(run.spec()), units)
    assert run.store.read(path) == before
    assert run_unit(units[0], run.context()) == Done(units[0], False)


def test_a_run_goes_on_with_the_parts_that_exist(run: SmallRun) -> None:
    impatient = Patience(max_attempts=1, max_given_up=0)
    first = MortalExecutor(run.context(), kills(3), room=1)
    with pytest.raises(EngineError, match="failed every attempt"):
        make(run, first, units_of(run), patience=impatient)
    parts = [layout.shard_path("shards", 0, part) for part in range(4)]
    assert [run.store.exists(part) for part in parts] == [True, True, True, False]

    second = MortalExecutor(run.context(), lambda unit, _: unit.part is None and kills(3)(unit, 0))
    assert sorted(make(run, second, units_of(run))) == [0, 1]
    assert [second.tried[part] for part in parts] == [0, 0, 0, 1]
    assert [record.status for record in records_in(run, 0)] == [ImageStatus.OK] * 4


def test_parts_that_all_exist_are_put_together_without_any_work(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, row in enumerate(run.rows[:4]):
        unit = units_of(run)[0]
        alone = ShardUnit(**{**unit.__dict__, "part": part, "images": (row,)})
        assert run_unit(alone, run.context()) == Done(alone, True)
    executor = MortalExecutor(run.context(), lambda unit, _: unit.part is None)
    monkeypatch.setattr(run.store, "exists", pytest.fail)  # one listing, not a look for each image
    assert make(run, executor, units_of(run)[:1]) == [0]
    assert [record.image_id for record in records_in(run, 0)] == [0, 1, 2, 3]


def test_nothing_to_make_is_made_at_once(run: SmallRun) -> None:
    assert make(run, LocalExecutor(run.spec()), []) == []
