"""Ray without processes and without waiting: hours of a cluster pass in moments.

An actor's units take the virtual seconds, and have the outcomes, that a test says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from engine import production, ray_executor
from engine.executor import Outcome

Work = Callable[[Any, int, float], tuple[float, Outcome]]
"""Of a unit, the number of its actor, and the time when it begins: when it ends, and how."""


@dataclass(frozen=True, eq=False)
class Reference:
    time: float
    value: Any


@dataclass
class VirtualRay:
    """Stands in for the modules `ray` and `time`."""

    work: Work
    now: float = 0.0
    killed: list[int] = field(default_factory=list)
    """Numbers of actors, in the order in which they were started."""
    _numbers: Any = field(default_factory=count)

    def options(self, **_: Any) -> Any:
        return SimpleNamespace(remote=lambda spec: VirtualActor(self, next(self._numbers)))

    def wait(
        self, refs: list[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        self.now = max(self.now, min(min(ref.time for ref in refs), self.now + timeout))
        return [ref for ref in refs if ref.time <= self.now], []

    def get(self, ref: Reference) -> Any:
        return ref.value

    def kill(self, actor: "VirtualActor") -> None:
        self.killed.append(actor.number)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class VirtualActor:
    def __init__(self, cluster: VirtualRay, number: int) -> None:
        self.number = number
        self._cluster, self._free = cluster, cluster.now
        self.start = SimpleNamespace(remote=self._start)
        self.run = SimpleNamespace(remote=self._run)

    def _start(self, pause: float) -> Reference:
        self._free += pause + 1.0
        return Reference(self._free, f"machine {self.number}")

    def _run(self, unit: Any) -> Reference:
        begins = max(self._free, self._cluster.now)
        self._free, outcome = self._cluster.work(unit, self.number, begins)
        return Reference(self._free, outcome)


def install(patched: pytest.MonkeyPatch, work: Work) -> VirtualRay:
    cluster = VirtualRay(work)
    for name in ("ray", "time", "_Actor"):
        patched.setattr(ray_executor, name, cluster)
    patched.setattr(production, "time", cluster)
    return cluster
