"""A disk that is full when something is to be written."""

import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import cli
from faults import Driver, held_pids, lift, plant, wait_until
from tiny_runs import AUTOMATIC, MANUAL, TinyRun, sa_engine

DISK_BYTES = 8 * 2**20


class SmallDisk:
    """A file system of a few megabytes, mounted for the test."""

    refusal = "No space left on device"

    def __init__(self, root: Path) -> None:
        self._filler = root / "filler"

    def fill(self, writer: int) -> None:
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                pass

    def free(self) -> None:
        self._filler.unlink()


class LimitedWriter:
    """Where a test may not mount: the kernel lets the writing process write no more."""

    refusal = "File too large"

    def fill(self, writer: int) -> None:
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def free(self) -> None:
        pass  # the limit has ended with its process


Disk = SmallDisk | LimitedWriter


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Of the folder `run` in the test's own."""
    root = tmp_path / "run"
    root.mkdir()
    if not _succeeds("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(root)):
        yield LimitedWriter()
        return
    try:
        yield SmallDisk(root)
    finally:
        assert _succeeds("umount", "--lazy", str(root))  # files may still be open in this process


def _succeeds(program: str, *arguments: str) -> bool:
    found = shutil.which(program)
    return bool(found) and subprocess.run([found, *arguments], capture_output=True).returncode == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_disk_that_is_full_when_a_shard_is_written_stops_the_run_until_there_is_room(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=6)
    config, shards = run.write_config(), run.out / "rounds/00-fully_automatic/shards"
    image = run.image(3)  # of the second shard
    plant(image, "hold worker")
    with ThreadPoolExecutor(1) as other:
        filling = other.submit(_fill_when_held, image, disk)
        assert sa_engine(monkeypatch, "run", config, "--out", str(run.out)) == cli.USER_ERROR
        filling.result()
    errors = capfd.readouterr().err.splitlines()
    (error,) = (line for line in errors if line.startswith("error: "))
    assert errors[-1] == error
    assert "cannot write rounds/00-fully_automatic/shards/shard-000001.parquet" in error
    assert f"{disk.refusal} (on {platform.node()}); mend the storage and run the same" in error
    assert not [path.name for path in shards.iterdir() if "shard-000001" in path.name]

    disk.free()
    assert sa_engine(monkeypatch, "run", config, "--out", str(run.out)) == 0
    run.assert_whole()


def test_an_annotation_queue_on_a_full_disk_stops_the_run_until_there_is_room(
    tmp_path: Path, disk: Disk
) -> None:
    changes = {
        "execution": {"executor": "local"},
        "retraining": {"training": {"freeze_image_encoder": False}},  # so nothing else is written
    }
    run = TinyRun(tmp_path, [{**MANUAL, "retrain": False}], num_images=4, changes=changes)
    corpus, image = run.out / "corpus/corpus.parquet", run.image(3)
    with Driver(run.write_config(), run.out) as driver:
        wait_until(lambda: corpus.exists() or not driver.is_alive, "all images have been read once")
        plant(image, "hold")
        _fill_when_held(image, disk)
        status, errors = driver.end()
    assert status == cli.USER_ERROR, errors[-12:]
    assert re.match("error: the annotation queue refused: .*; mend its storage and run", errors[-1])
    assert len([line for line in errors if "error" in line]) == 1

    disk.free()
    run.run()
    run.assert_whole()


def _fill_when_held(path: Path, disk: Disk) -> None:
    wait_until(lambda: held_pids(path), "the worker stands still")
    disk.fill(held_pids(path)[0])
    lift(path)
