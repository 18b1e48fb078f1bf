"""Training as a Ray Train job, which survives a dead rank and a dead driver.

A dead rank is restarted from the last checkpoint that was reported; a new driver finds it by the
run's name, which therefore carries everything that shapes the training.
"""

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from engine.errors import EngineError
from engine.store import Store
from engine.training import State, TrainingJob, load_state
from engine.uris import child_uri

MAX_RANK_FAILURES = 3


def train_on_ray(store: Store, job: TrainingJob) -> None:
    """Raises EngineError when the training fails more often than a dead machine explains."""
    execution = job.config.execution
    trainer = TorchTrainer(
        _run_rank,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.num_ranks,
            use_gpu=execution.gpus_per_worker > 0,
            resources_per_worker={"CPU": execution.train_threads},
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=child_uri(store.uri, "training"),
            failure_config=FailureConfig(max_failures=MAX_RANK_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        _run_aside(trainer.fit)
    except ray.train.TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineError(f"the training of {job.target} failed: {reason}") from error


def _run_aside(work: Callable[[], object]) -> None:
    """Wait for `work` in a thread of its own.

    In the main thread Ray Train takes Ctrl-C for itself, and for good: a stopped training would
    look like one that has finished, and so would all that is stopped after it.
    """
    finished: Future[None] = Future()

    def run() -> None:
        try:
            work()
            finished.set_result(None)
        except BaseException as error:
            finished.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    finished.result()


def _run_rank(loop_config: dict[str, TrainingJob]) -> None:
    loop_config["job"].run(RayKeeper())


class RayKeeper:
    """Keeps states as Ray Train checkpoints; for use within a rank."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()

    def latest(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder) / "state.pt")

    def keep(self, state: State, metrics: dict[str, float]) -> None:
        if self.rank > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "state.pt")
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
