"""The executor protocol on Ray actors, which may die at any time.

An actor holds the model and works its units off in order, two in flight so that it never waits.
When one dies it is replaced. If it had one unit, that unit is charged with the death; if it had
two, nobody knows which was to blame, so each is tried again alone on an actor.

An actor is given work once it has started, not before: what replaces the actors of a lost machine
may wait for a place for ever, while the others go on.

A process whose device has failed fails everything, and fast, so it is the one that is always idle:
left alone, it would take all that is tried again. So an actor on which several units failed in a
row is replaced. As long as others work, an actor that cannot start is tried again and again, ever
more slowly: its machine may be ill.

One that cannot have the files of images, while others can, is given nothing for a while, ever
longer: its disk may be away, and it too would be the one that is always idle.

A unit that takes far longer than others is told of; one that never ends, since a disk or a device
does not answer, must not hold its actor for ever, and counts as one that the actor died of.
"""

import logging
import platform
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from engine import layout
from engine.context import WorkerContext, WorkerSpec
from engine.errors import EngineError
from engine.executor import Done, Failed, Outcome, Unit, run_unit

log = logging.getLogger(__name__)

IN_FLIGHT = 2
DEAD_STARTS, MAX_FAILED_STARTS = 3, 16
"""In a row, where none has started: as many as there are workers, but at least and at most so many.
What a worker says of itself is said once by each."""
MAX_FAILED_UNITS = 3
"""In a row, on one actor."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0
"""Before an actor starts in the place of one that could not, for each in a row; at most. Before one
that could not have files is given more: after the first the same, soon longer."""
LONG_SECONDS, LONG_FACTOR = 600.0, 10
STUCK_SECONDS, STUCK_FACTOR = 3600.0, 30
"""A unit that takes both so long and so many times what others take is told of, or ended. While
none has been done, nobody knows what others take: it is told of all the same."""
PATIENCE_SECONDS = 60.0
"""Without any worker, until we say that we wait for one."""


class _Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self._context = WorkerContext(spec)
        self._context.pin_threads()

    def start(self, pause: float) -> str:
        """The machine's name. Raises EngineError, which names it."""
        time.sleep(pause)
        try:
            self._load()
        except Exception as error:  # whatever a disk, a network or a device may raise
            raise EngineError(f"on {platform.node()}: {error}") from error
        return platform.node()

    def _load(self) -> None:
        if not self._context.store.exists(layout.CONFIG):
            raise EngineError(
                f"the run's folder {self._context.store.uri} is not visible; use a disk that all "
                "machines share, or an object store"
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
    failed_starts: int = 0
    """In a row, of those whose place it took."""
    failures: int = 0
    """In a row, of units; of those whose place it took as well."""
    refusals: int = 0
    """Units in a row of which an image's file could not be had."""
    rests_until: float = 0.0
    machine: str = ""
    since: float = 0.0
    """When its oldest unit became so."""
    is_told_of: bool = False
    """That it takes long."""

    def may_work(self) -> bool:
        return self.starting is None and time.monotonic() >= self.rests_until

    def room(self) -> int:
        return IN_FLIGHT - len(self.running) if self.may_work() and not self.solo else 0


class RayExecutor:
    def __init__(self, spec: WorkerSpec, *, workers: int, gpus_per_worker: float = 0.0) -> None:
        """Ray must be initialised. Actors hold `spec.threads` CPUs each."""
        self._spec = spec
        self._gpus = gpus_per_worker
        self._queue: deque[Unit] = deque()
        self._alone: deque[Unit] = deque()
        """Units that must have a worker to themselves."""
        self._failed_starts = 0
        self._last_alive = time.monotonic()
        self._images_done, self._seconds_done = 0, 0.0
        self._slots = [self._start_actor() for _ in range(workers)]

    def has_room(self) -> bool:
        waiting = self._queue or self._alone
        return not waiting and any(slot.room() > 0 for slot in self._slots)

    def submit(self, unit: Unit, *, alone: bool = False) -> None:
        (self._alone if alone else self._queue).append(unit)
        self._assign()

    def wait(self, timeout: float) -> list[Outcome]:
        self._assign()
        outcomes = self._collect(timeout)
        self._tell_of_waiting()
        return outcomes + self._end_long_units()

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []

    def _start_actor(self, failed_starts: int = 0, failures: int = 0) -> _Slot:
        options = {
            "num_cpus": self._spec.threads,
            "num_gpus": self._gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self._spec.threads)}},
        }
        actor = _Actor.options(**options).remote(self._spec)
        pause = min(failed_starts * PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        return _Slot(
            actor, actor.start.remote(pause), failed_starts=failed_starts, failures=failures
        )

    def _assign(self) -> None:
        """First those that must be alone, each to an idle actor, where there is a choice to one on
        which the last unit did not fail; then the queue, evenly.

        While one waits to be alone nobody is given more, or no actor might ever become idle.
        """
        able = [slot for slot in self._slots if slot.may_work()]
        for slot in sorted(able, key=lambda slot: slot.failures + slot.refusals):
            if self._alone and not slot.running:
                slot.solo = True
                self._send(slot, self._alone.popleft())
        while self._queue and not self._alone:
            slot = max(self._slots, key=_Slot.room)
            if slot.room() == 0:
                return
            self._send(slot, self._queue.popleft())

    @staticmethod
    def _send(slot: _Slot, unit: Unit) -> None:
        if not slot.running:
            slot.since = time.monotonic()
        slot.running[slot.actor.run.remote(unit)] = unit

    def _collect(self, timeout: float) -> list[Outcome]:
        waiting = [slot.starting for slot in self._slots if slot.starting is not None]
        waiting += [ref for slot in self._slots for ref in slot.running]
        if not waiting:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout)
        if ready:  # take all that have arrived, not only the first
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        outcomes: list[Outcome] = []
        for slot in tuple(self._slots):
            if slot.starting in ready:
                self._started(slot)
            for ref in ready:
                if ref in slot.running:  # no more if the actor died on an earlier one
                    outcomes += self._finished(slot, ref)
        return outcomes

    def _started(self, slot: _Slot) -> None:
        try:
            slot.machine = ray.get(slot.starting)
        except RayTaskError as error:
            self._failed_to_start(slot, str(error.cause), is_said=True)
        except RayError as error:
            self._failed_to_start(slot, f"it died while loading the model: {error}", is_said=False)
        else:
            slot.starting = None
            self._failed_starts = 0

    def _failed_to_start(self, slot: _Slot, reason: str, *, is_said: bool) -> None:
        """
        Args:
            is_said: by the worker itself, which did not die of it.
        """
        others_work = any(other.starting is None for other in self._slots)
        self._failed_starts = 0 if others_work else self._failed_starts + 1
        least = 1 if is_said else DEAD_STARTS
        if self._failed_starts >= min(max(least, len(self._slots)), MAX_FAILED_STARTS):
            raise EngineError(f"workers cannot start: {reason}")
        log.warning("a worker cannot start: %s; replaced", reason)
        self._replace(slot, failed_starts=slot.failed_starts + 1, failures=slot.failures)

    def _finished(self, slot: _Slot, ref: Any) -> list[Outcome]:
        unit = slot.running[ref]
        try:
            outcome: Outcome = replace(ray.get(ref), unit=unit)
        except RayTaskError as error:  # outside `run_unit`: it or its result cannot be pickled
            outcome = Failed(unit, " ".join(str(error.cause).split()))
        except RayError as error:  # the actor is dead, or its machine, with all that it held
            return self._died(slot, type(error).__name__)
        del slot.running[ref]
        slot.solo = False
        now = time.monotonic()
        if isinstance(outcome, Done) and outcome.result is not False:
            self._images_done += _num_images(unit)
            self._seconds_done += max(0.0, now - slot.since)
        slot.since, slot.is_told_of = now, False
        self._rest_if_refused(slot, outcome)
        has_failed = isinstance(outcome, Failed) and not outcome.storage and not outcome.unavailable
        slot.failures = slot.failures + 1 if has_failed else 0
        if has_failed and slot.failures % MAX_FAILED_UNITS == 0:
            log.warning("%d units in a row failed on %s; replaced", slot.failures, slot.machine)
            self._queue.extendleft(self._replace(slot, failures=slot.failures))
        return [outcome]

    def _rest_if_refused(self, slot: _Slot, outcome: Outcome) -> None:
        """Where no other can have its files either, it is nobody's disk: all of them go on."""
        is_refused = isinstance(outcome, Failed) and outcome.unavailable
        slot.refusals = slot.refusals + 1 if is_refused else 0
        others = [other for other in self._slots if other is not slot and other.starting is None]
        if is_refused and any(other.refusals == 0 for other in others):
            pause = min(slot.refusals**2 * PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            slot.rests_until = time.monotonic() + pause

    def _died(self, slot: _Slot, reason: str) -> list[Outcome]:
        units = self._replace(slot)
        died = "a worker died on %s (%s) with %d units in hand; replaced"
        log.warning(died, slot.machine, reason, len(units))
        if len(units) == 1:
            return [Failed(units[0], f"its worker died ({reason})")]
        self._alone.extend(units)
        return []

    def _replace(self, slot: _Slot, *, failed_starts: int = 0, failures: int = 0) -> list[Unit]:
        """Start a new actor in another's place; returns what that one had in hand."""
        ray.kill(slot.actor)  # it may only be out of sight
        units = list(slot.running.values())
        slot.running.clear()
        self._slots[self._slots.index(slot)] = self._start_actor(failed_starts, failures)
        return units

    def _end_long_units(self) -> list[Outcome]:
        """And tell of those that may become so long."""
        mean = self._seconds_done / max(self._images_done, 1)
        now = time.monotonic()
        outcomes: list[Outcome] = []
        for slot in tuple(self._slots):
            if not slot.running:
                continue
            seconds = now - slot.since
            usual = mean * _num_images(next(iter(slot.running.values())))
            if usual and seconds > max(STUCK_SECONDS, STUCK_FACTOR * usual):
                outcomes += self._died(slot, f"stuck for {seconds:.0f} s")
            elif seconds > max(LONG_SECONDS, LONG_FACTOR * usual):
                self._tell_of_long_unit(slot, seconds, usual)
        return outcomes

    @staticmethod
    def _tell_of_long_unit(slot: _Slot, seconds: float, usual: float) -> None:
        if not slot.is_told_of:
            slot.is_told_of = True
            unit = next(iter(slot.running.values()))
            what = getattr(unit, "path", type(unit).__name__)
            others = f"others take {usual:.1f} s" if usual else "no other is done yet"
            long = "%s has been worked on for %d s on %s; %s"
            log.warning(long, what, seconds, slot.machine, others)

    def _tell_of_waiting(self) -> None:
        now = time.monotonic()
        if any(slot.starting is None for slot in self._slots):
            self._last_alive = now
        elif now - self._last_alive > PATIENCE_SECONDS:
            self._last_alive = now
            log.warning(
                "waiting for a worker: each needs %d CPUs and %g GPUs, of which %s are free",
                self._spec.threads,
                self._gpus,
                {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")},
            )


def _num_images(unit: Unit) -> int:
    """By which units are compared: a shard has hundreds, its parts one. All others count as one."""
    return len(getattr(unit, "images", ())) or 1
