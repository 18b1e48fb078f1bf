"""Retrainings that diverge, or whose ranks die again and again; without a cluster."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.train import WorkerGroupError

from engine import ray_training
from engine.config import changed
from engine.errors import EngineError
from engine.ray_training import train_on_ray
from engine.store import LocalStore
from engine.training import Rank, RetrainingJob
from tiny_runs import MANUAL, TinyRun


@pytest.fixture
def job(tmp_path: Path) -> RetrainingJob:
    config = TinyRun(tmp_path, [MANUAL], num_images=2).config
    return RetrainingJob(str(tmp_path / "run"), config, 0, "parent", (), "checkpoints/round-00")


def test_a_training_that_has_diverged_ends_and_keeps_the_state_before(job: RetrainingJob) -> None:
    store = LocalStore(Path(job.store_uri))
    context: Any = SimpleNamespace(store=store)
    good = {"steps_done": 2, "sam": {"weight": torch.ones(2)}, "optimizer": {"state": [{}]}}
    job.keep(context, Rank(), good)
    for diverged in (
        {"sam": {"weight": torch.tensor([1, torch.nan])}},
        {"optimizer": [good, torch.tensor(torch.inf)]},
    ):
        with pytest.raises(EngineError, match=r"round-00 has diverged before step 4: "):
            job.keep(context, Rank(), good | diverged | {"steps_done": 4})
    assert torch.load(io.BytesIO(store.read(job.state_path)))["steps_done"] == 2


def test_a_training_draws_by_the_seeds_of_its_run_and_its_own(job: RetrainingJob) -> None:
    def seed(run: int, own: int, index: int = 0) -> int:
        changes = {"seed": run, "retraining": {"training": {"seed": own}}}
        return replace(job, config=changed(job.config, changes), round=index).seed

    # What runs have drawn that do not say.
    assert seed(3, 0, 1) == np.random.SeedSequence([3, 1]).generate_state(1)[0]
    assert len({seed(0, 0), seed(1, 0), seed(0, 1), seed(0, 2), seed(0, 1, 1), seed(1, 1)}) == 6


def test_ranks_may_be_lost_as_often_as_they_like_while_the_training_gets_on(
    job: RetrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(Path(job.store_uri))
    fits = []

    class Trainer:
        """Four times it loses too many ranks, the last time without having kept anything."""

        def fit(self) -> None:
            fits.append(self)
            if len(fits) < 4:
                store.replace(job.state_path, bytes(len(fits)))
            raise WorkerGroupError("a rank died", {})

    monkeypatch.setattr(ray_training, "_trainer", lambda *_: Trainer())
    with pytest.raises(EngineError, match="the training of checkpoints/round-00 failed: a rank"):
        train_on_ray(store, job)
    assert len(fits) == 4
