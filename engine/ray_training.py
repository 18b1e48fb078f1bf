"""Training as a Ray Train job, which survives a dead rank and a dead driver.

Ray Train starts the ranks, connects them, and starts them anew when one dies. The state they go on
from is the job's own (`TrainingJob.kept`), and none of Ray Train's checkpoints: the note in which
Ray Train lists those is written in place, and a driver that is killed over it, or a full disk,
leaves half a note, which ends every later attempt.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from engine.errors import EngineError
from engine.store import Store
from engine.training import Rank, TrainingJob
from engine.uris import child_uri

log = logging.getLogger(__name__)

MAX_RANK_FAILURES = 3
"""Without a state that was kept in between: machines may die as often as they like."""


def train_on_ray(store: Store, job: TrainingJob) -> None:
    """Raises EngineError when the training fails more often than a dead machine explains."""
    kept = _kept_at(store, job)
    while True:
        try:
            _run_aside(_trainer(store, job).fit)
            return
        except (ray.train.TrainingFailedError, RayError) as error:
            reason = str(error).strip().splitlines()[-1]
            before, kept = kept, _kept_at(store, job)
            if kept == before:
                raise EngineError(f"the training of {job.target} failed: {reason}") from error
            log.warning("the training of %s goes on after failures: %s", job.target, reason)


def _kept_at(store: Store, job: TrainingJob) -> float | None:
    """When the job's last state was kept."""
    folder = job.state_path.rpartition("/")[0]
    times = [file.modified for file in store.list(folder) if file.path == job.state_path]
    return times[0] if times else None


def _trainer(store: Store, job: TrainingJob) -> TorchTrainer:
    execution = job.config.execution
    return TorchTrainer(
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
        ),
    )


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
    context = ray.train.get_context()
    loop_config["job"].run(Rank(context.get_world_rank(), context.get_world_size()))
