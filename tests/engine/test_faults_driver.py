"""Drivers that are killed, stopped with Ctrl-C, or run twice at once."""

import io
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from faults import Driver, held_pids, is_alive, lift, noted_pids, plant, wait_until
from tiny_runs import AUTOMATIC, TinyRun

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow

KILLED, INTERRUPTED = -9, 130


@pytest.mark.ray
@pytest.mark.timeout(600)  # three drivers, one after the other
def test_a_driver_killed_again_and_again_ends_with_the_rows_of_an_undisturbed_run(
    tmp_path: Path, ray_cluster: "Cluster", undisturbed: TinyRun
) -> None:
    run = undisturbed.anew(tmp_path)
    config = run.write_config()
    embeddings = _embeddings_to_come(run, undisturbed)

    def drive() -> Driver:
        return Driver(config, run.out, RAY_ADDRESS=ray_cluster.address)

    def readers() -> list[int]:
        return [pid for path in embeddings for pid in noted_pids(path)]

    # While training; the rank may outlive the driver, and keep another state.
    for embedding in embeddings:
        plant(embedding, "note worker")
    plant(embeddings[0], "note hold worker 8")
    with drive() as driver:
        wait_until(lambda: held_pids(embeddings[0]) or not driver.is_alive, "the rank stands still")
        driver.kill()
    plant(embeddings[0], "note worker")
    wait_until(lambda: not any(map(is_alive, set(readers()))), "the rank is dead")
    kept, dead = _kept_steps(run), set(readers())
    training = run.config.retraining.training
    assert 0 < kept < training.steps

    # While proposals are made; the worker outlives its driver and publishes one all the same.
    proposals = run.out / "rounds/01-semi_automatic/proposals/shard-000000.parquet"
    plant(proposals, "hold worker")
    with drive() as driver:
        wait_until(lambda: held_pids(proposals) or not driver.is_alive, "a shard is published")
        driver.kill()
    lift(proposals)
    # The training did the steps that were missing, each of which reads the images of its batch.
    # The detector's training came after it, in another rank.
    reads = Counter(pid for pid in readers() if pid not in dead)
    assert (training.steps - kept) * training.batch_images in reads.values()

    with drive() as driver:
        status, errors = driver.end()
    assert status == 0, "\n".join(errors)
    run.assert_whole()
    assert run.content() == undisturbed.content()


def test_two_drivers_of_one_run_at_once_double_no_row(tmp_path: Path, undisturbed: TinyRun) -> None:
    run = undisturbed.anew(tmp_path, executor="local")
    config = run.write_config()
    with Driver(config, run.out) as first, Driver(config, run.out) as second:
        for status, errors in (first.end(), second.end()):
            assert status == 0, "\n".join(errors)
    run.assert_whole()
    assert run.content() == undisturbed.content()


def test_a_driver_killed_amid_a_task_and_over_a_seal_and_stopped_while_training_goes_on(
    tmp_path: Path, undisturbed: TinyRun
) -> None:
    run = undisturbed.anew(tmp_path, executor="local")
    config, manifest = run.write_config(), run.out / "rounds/00-assisted_manual/manifest.json"
    plant(_embeddings_to_come(run, undisturbed)[0], "kill once")
    plant(manifest, "kill once")  # it is written but has no name yet
    for _ in range(2):
        with Driver(config, run.out) as driver:
            assert driver.end()[0] == KILLED
        assert not manifest.exists()
    assert not list(tmp_path.rglob("*.fault"))

    with Driver(config, run.out) as driver:
        wait_until(lambda: _kept_steps(run) or not driver.is_alive, "a state is kept")
        driver.interrupt()
        status, errors = driver.end()
    assert (status, errors[-1]) == (INTERRUPTED, "stopped; the same command goes on from here")
    assert "Traceback" not in "".join(errors)

    run.run()
    run.assert_whole()
    assert run.content() == undisturbed.content()


@pytest.mark.ray
def test_a_driver_killed_at_a_random_moment_with_a_ray_of_its_own_is_simply_started_again(
    tmp_path: Path,
) -> None:
    changes = {"fully_automatic": {"points_per_side": 8}}
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=24, changes=changes)
    config, shards = run.write_config(), run.out / "rounds/00-fully_automatic/shards"
    delay = random.uniform(0, 2)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray:
        (Path(ray) / "ray").mkdir()
        (Path(ray) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # not to be joined
        with Driver(config, run.out, RAY_TMPDIR=ray) as killed:
            wait_until(lambda: shards.exists() or not killed.is_alive, "shards are made")
            time.sleep(delay)
        print(f"killed {delay:.2f} s after work on the first shard began")
        with Driver(config, run.out, RAY_TMPDIR=ray) as driver:
            status, errors = driver.end()
        killed.end_session()
    assert status == 0, "\n".join(errors)
    run.assert_whole()


def _embeddings_to_come(run: TinyRun, undisturbed: TinyRun) -> list[Path]:
    """Of the images of a run's tasks, by where they lie in one that has ended."""
    paths = sorted(undisturbed.out.glob("embeddings/**/*.npy"))
    return [run.out / path.relative_to(undisturbed.out) for path in paths]


def _kept_steps(run: TinyRun) -> int:
    """Of the last state that a training kept; 0 when there is none."""
    for path in run.out.glob("training/*/state.pt"):
        return int(torch.load(io.BytesIO(path.read_bytes()))["steps_done"])
    return 0
