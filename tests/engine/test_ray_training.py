"""Retrainings as Ray Train jobs, some of whose ranks die."""

import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer

from engine.config import changed
from engine.errors import EngineError
from engine.ray_machines import RayMachines
from engine.training import RetrainingJob
from faults import environment_here, held_pids, lift, noted_pids, plant, wait_until
from faulty_units import WitnessedJob
from model.checkpoint import Checkpoint, load_checkpoint
from tiny_runs import TinyRun

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Train warns of its own settings
]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What Ray Train takes from the driver, which is this process."""
    with environment_here():
        yield


@pytest.fixture
def embeddings(undisturbed: TinyRun) -> Iterator[list[Path]]:
    """Files that a worker leaves a note on when it reads them."""
    paths = sorted(undisturbed.out.glob("embeddings/**/*.npy"))
    for path in paths:
        plant(path, "note worker")
    yield paths
    for path in paths:
        lift(path)


def test_a_rank_killed_in_the_middle_goes_on_from_the_kept_state_to_the_same_weights(
    undisturbed: TinyRun, embeddings: list[Path]
) -> None:
    run, training = undisturbed, undisturbed.config.retraining.training
    job = RetrainingJob(**_job(run, "killed"))
    plant(embeddings[0], "note hold worker 8")

    def readers() -> list[int]:
        return [pid for path in embeddings for pid in noted_pids(path)]

    with ThreadPoolExecutor(1) as driver:
        done = driver.submit(RayMachines(run.config.execution).train, run.store, job)
        wait_until(lambda: held_pids(embeddings[0]) or done.done(), "the rank stands still")
        (killed,) = held_pids(embeddings[0])
        plant(embeddings[0], "note worker")
        os.kill(killed, signal.SIGKILL)
        kept = torch.load(io.BytesIO(run.store.read(job.state_path)))["steps_done"]
        done.result(timeout=90)

    assert 0 < kept < training.steps
    reads = [pid for pid in readers() if pid != killed]
    assert len(set(reads)) == 1
    # A step reads the images of its batch: none was repeated.
    assert len(reads) == (training.steps - kept) * training.batch_images
    disturbed, original = _checkpoint(run, "killed"), _checkpoint(run, "round-00")
    assert disturbed.sha256 == original.sha256
    assert disturbed.lineage == original.lineage


@pytest.mark.slow
def test_two_ranks_hold_the_same_weights(undisturbed: TinyRun) -> None:
    run, interrupt = undisturbed, signal.getsignal(signal.SIGINT)
    changes = {"execution": {"train_workers": 2}, "retraining": {"training": {"steps": 4}}}
    config = changed(run.config, changes)
    job = WitnessedJob(**_job(run, "two-ranks") | {"config": config})
    RayMachines(config.execution).train(run.store, job)

    first, second = (torch.load(run.out / f"rank-{rank}-of-2") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    trained, parent = (_checkpoint(run, name).sam.state_dict() for name in ("two-ranks", "tiny"))
    assert all(torch.equal(first[name], trained[name]) for name in first)
    assert not all(torch.equal(first[name], parent[name]) for name in first)
    assert signal.getsignal(signal.SIGINT) is interrupt  # Ray Train would take it, and for good


def test_a_training_that_cannot_succeed_ends_in_one_line(
    undisturbed: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(_: TorchTrainer) -> None:
        """What a rank's EngineError becomes after its last attempt."""
        told = "[Rank 0]\nTraceback (most recent call last):\n  ...\nengine.errors.EngineError: why"
        raise WorkerGroupError(told, {0: EngineError("why")})

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    job = RetrainingJob(**_job(undisturbed, "hopeless"))
    with pytest.raises(EngineError) as caught:
        RayMachines(undisturbed.config.execution).train(undisturbed.store, job)
    told = "the training of checkpoints/hopeless failed: engine.errors.EngineError: why"
    assert str(caught.value) == told


def _job(run: TinyRun, name: str) -> dict[str, Any]:
    return {
        "store_uri": run.store.uri,
        "config": run.config,
        "round": 0,
        "parent": "checkpoints/tiny",
        "folders": (run.config.round_folder(0),),
        "target": f"checkpoints/{name}",
    }


def _checkpoint(run: TinyRun, name: str) -> Checkpoint:
    return load_checkpoint(run.out / "checkpoints" / name)
