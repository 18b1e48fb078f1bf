"""Where a run's work is done: in this process, or on Ray (`ray_machines`)."""

from typing import Protocol

from engine.context import WorkerSpec
from engine.executor import Executor, LocalExecutor
from engine.store import Store
from engine.training import Rank, TrainingJob


class Machines(Protocol):
    def executor(self, spec: WorkerSpec) -> Executor: ...
    def train(self, store: Store, job: TrainingJob) -> None:
        """Run a training until its result is published."""


class LocalMachines:
    def executor(self, spec: WorkerSpec) -> Executor:
        return LocalExecutor(spec)

    def train(self, store: Store, job: TrainingJob) -> None:
        job.run(Rank())
