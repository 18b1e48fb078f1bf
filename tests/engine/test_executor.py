import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.context import WorkerContext, WorkerSpec
from engine.errors import StorageError, UnavailableImageError
from engine.executor import Done, Failed, LocalExecutor, Outcome, Unit, run_all, run_unit


@dataclass(frozen=True)
class Work:
    number: int
    error: Exception | None = None

    def run(self, context: WorkerContext) -> int:
        if self.error is not None:
            raise self.error
        return self.number * 2


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    return WorkerSpec(str(tmp_path), checkpoint="")


def test_work_that_is_done_comes_back_with_its_result(spec: WorkerSpec) -> None:
    unit = Work(3)
    outcome = run_unit(unit, WorkerContext(spec))
    assert outcome == Done(unit, 6)
    assert outcome.unit is unit


def test_work_that_raises_comes_back_in_one_line_with_its_place(spec: WorkerSpec) -> None:
    outcome = run_unit(Work(3, ValueError("bad\nvalue")), WorkerContext(spec))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("ValueError: bad value (test_executor.py:")
    assert not outcome.storage


def test_storage_that_refuses_is_told_apart(spec: WorkerSpec) -> None:
    outcome = run_unit(Work(3, StorageError("disk full")), WorkerContext(spec))
    assert isinstance(outcome, Failed)
    assert outcome.storage


def test_an_image_that_cannot_be_had_is_told_apart(spec: WorkerSpec) -> None:
    error = UnavailableImageError("photos/3.png", "connection reset")
    outcome = run_unit(Work(3, error), WorkerContext(spec))
    assert isinstance(outcome, Failed)
    assert (outcome.unavailable, outcome.storage) == (True, False)


def test_ctrl_c_is_no_failure_of_the_work(spec: WorkerSpec) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_unit(Work(3, KeyboardInterrupt()), WorkerContext(spec))  # type: ignore[arg-type]


def test_the_local_executor_has_room_for_one_and_runs_it_when_waited_for(
    spec: WorkerSpec,
) -> None:
    executor = LocalExecutor(spec)
    assert executor.has_room()
    executor.submit(Work(1))
    assert not executor.has_room()
    executor.submit(Work(2))
    assert executor.wait(1) == [Done(Work(1), 2)]
    assert executor.wait(1) == [Done(Work(2), 4)]
    began = time.monotonic()
    assert executor.wait(0.05) == []
    assert time.monotonic() - began >= 0.05
    executor.close()


@dataclass
class FlakyExecutor:
    """Fails some numbers the first time, others always; takes two at once."""

    flaky: set[int]
    broken: set[int]
    alone: list[tuple[int, bool]] = field(default_factory=list)
    _units: deque[Any] = field(default_factory=deque)
    _failed: set[int] = field(default_factory=set)

    def has_room(self) -> bool:
        return len(self._units) < 2

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        self._units.append(unit)
        self.alone.append((unit.number, alone))  # type: ignore[attr-defined]

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._units:
            return []
        unit = self._units.popleft()
        fails = unit.number in self.broken or unit.number in self.flaky - self._failed
        self._failed.add(unit.number)
        return [Failed(unit, "its worker died") if fails else Done(unit, unit.number * 2)]

    def close(self) -> None: ...


def test_all_outcomes_come_back_once_and_failures_get_a_second_chance() -> None:
    executor = FlakyExecutor(flaky={1, 4}, broken={3})
    outcomes = list(run_all(executor, (Work(n) for n in range(6))))
    done = {o.unit.number: o.result for o in outcomes if isinstance(o, Done)}
    assert done == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
    assert [o.unit.number for o in outcomes if isinstance(o, Failed)] == [3]
    assert sorted(executor.alone) == [
        (0, False),
        (1, False),
        (1, True),
        (2, False),
        (3, False),
        (3, True),
        (4, False),
        (4, True),
        (5, False),
    ]


def test_equal_units_are_told_apart() -> None:
    executor = FlakyExecutor(flaky=set(), broken={1})
    outcomes = list(run_all(executor, [Work(1), Work(1)]))
    assert len(outcomes) == 2
    assert sum(alone for _, alone in executor.alone) == 2


def test_no_work_has_no_outcomes(spec: WorkerSpec) -> None:
    assert list(run_all(LocalExecutor(spec), [])) == []
