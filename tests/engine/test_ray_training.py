"""Retrainings as Ray Train jobs, some of whose ranks die."""

import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import ray_training
from engine.config import changed
from engine.errors import EngineError
from engine.ray_machines import RayMachines
from engine.training import RetrainingJob
from faults import noted_pids, plant, wait_until
from faulty_units import WitnessedJob
from model.checkpoint import Checkpoint, load_checkpoint
from tiny_runs import MANUAL, TinyRun

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Train warns of its own settings
]

STEPS, SAVE_EVERY, BATCH = 30, 5, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run with a sealed round to train on, and a checkpoint that was trained undisturbed."""
    training = {"training": {"steps": STEPS, "batch_images": BATCH}, "save_every_steps": SAVE_EVERY}
    folder = tmp_path_factory.mktemp("run")
    run = TinyRun(folder, [MANUAL], num_images=4, changes={"retraining": training})
    run.run()
    return run


def test_a_rank_killed_in_the_middle_goes_on_from_the_kept_state_to_the_same_weights(
    run: TinyRun,
) -> None:
    job = RetrainingJob(**_job(run, "killed"))
    for path in _embeddings(run):
        plant(path, "note worker")
    with ThreadPoolExecutor(1) as driver:
        training = driver.submit(RayMachines(run.config.execution).train, run.store, job)
        wait_until(lambda: run.store.exists(job.state_path) or training.done(), "a state is kept")
        assert not training.done() or training.result()
        (killed,) = set(_reads(run))
        os.kill(killed, signal.SIGKILL)
        kept = torch.load(io.BytesIO(run.store.read(job.state_path)))["steps_done"]
        training.result(timeout=90)

    assert 0 < kept < STEPS
    reads = [pid for pid in _reads(run) if pid != killed]
    assert len(set(reads)) == 1
    assert len(reads) == (STEPS - kept) * BATCH  # a step reads all of its images
    disturbed, undisturbed = _checkpoint(run, "killed"), _checkpoint(run, "round-00")
    assert disturbed.sha256 == undisturbed.sha256
    assert disturbed.lineage == undisturbed.lineage


@pytest.mark.slow
def test_two_ranks_hold_the_same_weights(run: TinyRun) -> None:
    changes = {"execution": {"train_workers": 2}, "retraining": {"training": {"steps": SAVE_EVERY}}}
    config = changed(run.config, changes)
    job = WitnessedJob(**_job(run, "two-ranks") | {"config": config})
    RayMachines(config.execution).train(run.store, job)

    first, second = (torch.load(run.out / f"rank-{rank}-of-2") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    trained, parent = (_checkpoint(run, name).sam.state_dict() for name in ("two-ranks", "tiny"))
    assert all(torch.equal(first[name], trained[name]) for name in first)
    assert not all(torch.equal(first[name], parent[name]) for name in first)


def test_a_training_that_cannot_succeed_ends_in_one_line(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_training, "MAX_RANK_FAILURES", 0)
    job = RetrainingJob(**_job(run, "orphan") | {"parent": "checkpoints/nobody"})
    with pytest.raises(EngineError, match=r"training of checkpoints/orphan failed: .*nobody") as e:
        RayMachines(run.config.execution).train(run.store, job)
    assert "\n" not in str(e.value)


def _job(run: TinyRun, name: str) -> dict[str, Any]:
    return {
        "store_uri": run.store.uri,
        "config": run.config,
        "round": 0,
        "parent": "checkpoints/tiny",
        "folders": (run.config.round_folder(0),),
        "target": f"checkpoints/{name}",
    }


def _reads(run: TinyRun) -> list[int]:
    """The process of every read of an image's embedding."""
    return [pid for path in _embeddings(run) for pid in noted_pids(path)]


def _embeddings(run: TinyRun) -> list[Path]:
    return sorted(run.out.glob("embeddings/**/*.npy"))


def _checkpoint(run: TinyRun, name: str) -> Checkpoint:
    return load_checkpoint(run.out / "checkpoints" / name)
