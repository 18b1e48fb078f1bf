"""The executor protocol on Ray actors, which may die at any time.

An actor holds the model and works its units off in order, two in flight so that it never waits.
When one dies it is replaced. If it had one unit, that unit is charged with the death; if it had
two, nobody knows which was to blame, so each is tried again alone on an actor.
"""

import logging
import platform
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from engine import layout
from engine.context import WorkerContext, WorkerSpec
from engine.errors import EngineError
from engine.executor import Done, Failed, Outcome, Unit, run_unit

log = logging.getLogger(__name__)

IN_FLIGHT = 2
MAX_FAILED_STARTS = 3


class _Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self._context = WorkerContext(spec)
        self._context.pin_threads()

    def start(self) -> None:
        if not self._context.store.exists(layout.CONFIG):
            raise EngineError(
                f"the run's folder {self._context.store.uri} is not visible on "
                f"{platform.node()}; use a disk that all machines share, or an object store"
            )
        if self._context.spec.checkpoint:
            _ = self._context.checkpoint

    def run(self, unit: Unit) -> Outcome:
        return run_unit(unit, self._context)


_Actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Worker)


@dataclass(eq=False)
class _Slot:
    """One actor and what it is doing."""

    actor: Any
    starting: Any
    """Reference of its `start` call; None once it has started."""
    running: dict[Any, Unit] = field(default_factory=dict)
    """Units by the reference of their outcome, oldest first."""
    solo: bool = False
    """Its unit must not be joined by another."""

    def room(self) -> int:
        return 0 if self.solo else IN_FLIGHT - len(self.running)


class RayExecutor:
    def __init__(self, spec: WorkerSpec, *, workers: int, gpus_per_worker: float = 0.0) -> None:
        """Ray must be initialised. Actors hold `spec.threads` CPUs each."""
        self._spec = spec
        self._gpus = gpus_per_worker
        self._queue: deque[Unit] = deque()
        self._suspects: deque[Unit] = deque()
        self._failed_starts = 0
        self._slots = [self._start_actor() for _ in range(workers)]

    def has_room(self) -> bool:
        return not self._queue and any(slot.room() > 0 for slot in self._slots)

    def submit(self, unit: Unit) -> None:
        self._queue.append(unit)
        self._assign()

    def wait(self, timeout: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout
        while True:
            self._assign()
            outcomes = self._collect(max(0.0, deadline - time.monotonic()))
            if outcomes or time.monotonic() >= deadline:
                return outcomes

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []

    def _start_actor(self) -> _Slot:
        options = {
            "num_cpus": self._spec.threads,
            "num_gpus": self._gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self._spec.threads)}},
        }
        actor = _Actor.options(**options).remote(self._spec)
        return _Slot(actor=actor, starting=actor.start.remote())

    def _assign(self) -> None:
        """Suspects first, each on an idle actor; then the queue, evenly."""
        for slot in self._slots:
            if self._suspects and not slot.running:
                slot.solo = True
                self._send(slot, self._suspects.popleft())
        while self._queue:
            slot = max(self._slots, key=_Slot.room)
            if slot.room() <= 0:
                return
            self._send(slot, self._queue.popleft())

    @staticmethod
    def _send(slot: _Slot, unit: Unit) -> None:
        slot.running[slot.actor.run.remote(unit)] = unit

    def _collect(self, timeout: float) -> list[Outcome]:
        owners = {ref: slot for slot in self._slots for ref in slot.running}
        starts = {slot.starting: slot for slot in self._slots if slot.starting is not None}
        waiting = [*owners, *starts]
        if not waiting:
            time.sleep(min(timeout, 0.05))
            return []
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout)
        if ready:  # take all that have arrived, not only the first
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        outcomes: list[Outcome] = []
        for ref in ready:
            if ref in starts and starts[ref].starting is not None:
                self._started(starts[ref], ref)
            elif ref in owners and ref in owners[ref].running:
                outcomes += self._finished(owners[ref], ref)
        return outcomes

    def _started(self, slot: _Slot, ref: Any) -> None:
        slot.starting = None
        try:
            ray.get(ref)
            self._failed_starts = 0
        except RayTaskError as error:
            raise EngineError(f"workers cannot start: {error.cause}") from error
        except RayActorError as error:
            self._died_starting(slot, error)

    def _finished(self, slot: _Slot, ref: Any) -> list[Outcome]:
        try:
            outcome: Done | Failed = ray.get(ref)
        except RayActorError as error:
            if slot.starting is not None:
                self._died_starting(slot, error)
                return []
            return self._died_working(slot)
        del slot.running[ref]
        slot.solo = False
        return [outcome]

    def _died_starting(self, slot: _Slot, error: RayActorError) -> None:
        """What it was given had not begun, so nobody is to blame."""
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise EngineError(
                f"{self._failed_starts} workers in a row died while loading the model: {error}"
            ) from error
        for unit in self._replace(slot):
            self._queue.appendleft(unit)

    def _died_working(self, slot: _Slot) -> list[Outcome]:
        units = self._replace(slot)
        log.warning("a worker died with %d units in hand; replaced", len(units))
        if len(units) == 1:
            return [Failed(units[0], "its worker died")]
        self._suspects.extend(units)
        return []

    def _replace(self, slot: _Slot) -> list[Unit]:
        """Start a new actor in a dead one's place; returns what the dead one had in hand."""
        units = list(slot.running.values())
        slot.running.clear()
        slot.starting = None
        self._slots[self._slots.index(slot)] = self._start_actor()
        return units
