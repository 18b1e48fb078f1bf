"""A run's work on Ray: a cluster that is already there, or this machine."""

import logging
import os

import ray

from engine.config import ExecutionConfig
from engine.context import WorkerSpec
from engine.errors import EngineError
from engine.ray_executor import RayExecutor
from engine.ray_training import train_on_ray
from engine.store import Store
from engine.training import TrainingJob

OBJECT_STORE_BYTES = 200 * 2**20
"""Of a Ray started here: only paths and counts pass through it."""


class RayMachines:
    """Connects to the cluster of RAY_ADDRESS (set within a Ray job), or starts Ray here."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self._execution = execution
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if ray.is_initialized():
            return
        address = os.environ.get("RAY_ADDRESS")
        try:
            if address:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    address="local",  # not whatever else may run on this machine
                    num_cpus=_cpus_here(execution),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=OBJECT_STORE_BYTES,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(f"cannot use Ray on {address or 'this machine'}: {error}") from error

    def executor(self, spec: WorkerSpec) -> RayExecutor:
        execution = self._execution
        workers = execution.workers or self._as_many_as_fit()
        return RayExecutor(spec, workers=workers, gpus_per_worker=execution.gpus_per_worker)

    def train(self, store: Store, job: TrainingJob) -> None:
        train_on_ray(store, job)

    def _as_many_as_fit(self) -> int:
        execution, resources = self._execution, ray.cluster_resources()
        if execution.gpus_per_worker:
            return max(1, int(resources.get("GPU", 0) / execution.gpus_per_worker))
        return max(1, int(resources.get("CPU", 1) / execution.threads_per_worker))


def _cpus_here(execution: ExecutionConfig) -> int | None:
    """To Ray, CPUs are mere bookkeeping: where a config asks for more than this machine has, it
    gets them, rather than waiting for them for ever. None: what Ray finds."""
    wanted = max(
        (execution.workers or 1) * execution.threads_per_worker,
        execution.train_workers * execution.train_threads,
    )
    return wanted if wanted > (os.cpu_count() or 1) else None
