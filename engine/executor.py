"""Who runs the work: the protocol, and the executor that runs it right here.

A unit of work is a small picklable object with `run(context)`; its result is small too (paths and
counts, never pixels). An executor takes units and gives back outcomes in any order. A unit that
raises, or whose worker dies while running nothing else, comes back as a failure; what to do about
it is for whoever submitted it.
"""

import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from engine.context import WorkerContext, WorkerSpec
from engine.errors import StorageError, UnavailableImageError

POLL_SECONDS = 1.0
"""How long to wait for an outcome before looking at other things."""


class Unit(Protocol):
    def run(self, context: WorkerContext) -> Any:
        """False says that there was nothing left to do: how long that took means nothing."""


@dataclass(frozen=True)
class Done:
    unit: Any
    """The very object that was submitted."""
    result: Any


@dataclass(frozen=True)
class Failed:
    unit: Any
    error: str
    """One line."""
    storage: bool = False
    """Storage refused a write: no fault of the unit, and no use trying the next."""
    unavailable: bool = False
    """An image's bytes could not be had; later they may be."""


Outcome = Done | Failed


class Executor(Protocol):
    def has_room(self) -> bool:
        """Whether another unit would start soon; more may be submitted all the same."""

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        """
        Args:
            alone: with nothing else on its worker, so that its death concerns no other unit.
        """

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call, as soon as there is one; empty after `timeout` seconds at
        the latest, and sooner when there has come to be room."""

    def close(self) -> None: ...


def run_unit(unit: Unit, context: WorkerContext) -> Outcome:
    """The one place that catches broadly: to fail a unit of work and not the run."""
    try:
        return Done(unit, unit.run(context))
    except Exception as error:  # whatever a stage, a codec or a device may raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        message = f"{type(error).__name__}: {error} ({where})".replace("\n", " ")
        return Failed(
            unit,
            message,
            storage=isinstance(error, StorageError),
            unavailable=isinstance(error, UnavailableImageError),
        )


def run_all(executor: Executor, units: Iterable[Unit]) -> Iterator[Outcome]:
    """Outcomes of independent units as they come, drawn as the executor has room.

    What fails is tried once more: a dead machine is no fault of its work.
    """
    waiting = iter(units)
    exhausted, in_flight = False, 0
    retried: list[Unit] = []
    while True:
        while not exhausted and executor.has_room():
            unit = next(waiting, None)
            if unit is None:
                exhausted = True
            else:
                executor.submit(unit)
                in_flight += 1
        if exhausted and not in_flight:
            return
        for outcome in executor.wait(POLL_SECONDS):
            unit = outcome.unit
            if isinstance(outcome, Failed) and not any(unit is other for other in retried):
                retried.append(unit)
                executor.submit(unit, alone=True)
            else:
                in_flight -= 1
                yield outcome


class LocalExecutor:
    """Runs each unit in this process when it is waited for."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.context = WorkerContext(spec)
        self._units: deque[Unit] = deque()

    def has_room(self) -> bool:
        return not self._units

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        self._units.append(unit)

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._units:
            time.sleep(timeout)
            return []
        return [run_unit(self._units.popleft(), self.context)]

    def close(self) -> None:
        pass
