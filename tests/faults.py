"""Faults planted from a test, and the command line run as a process that may be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

TESTS = Path(__file__).parent
PATIENCE_SECONDS = 150.0


def plant(path: Path, words: str) -> None:
    """See `fault_hooks/sitecustomize.py` for the words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _beside(path, "fault").write_text(words)


def lift(path: Path) -> None:
    _beside(path, "fault").unlink(missing_ok=True)


def held_pids(path: Path) -> list[int]:
    """Processes that stand still at a path."""
    return _pids(_beside(path, "held"))


def noted_pids(path: Path) -> list[int]:
    """One process id for each time that a noted path was met."""
    return _pids(_beside(path, "noted"))


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited for {PATIENCE_SECONDS:.0f} s until {what}"
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Of processes that are to meet faults, and of the Ray that they start."""
    paths = (TESTS / "fault_hooks", TESTS.parent, TESTS)
    changes = {
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or whatever else a busy machine does comes before them
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon it sees that a rank is done, or dead
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    return os.environ | changes


@contextmanager
def environment_here() -> Iterator[None]:
    """The same in this process, for processes that somebody else starts meanwhile."""
    saved = os.environ.copy()
    os.environ.update(environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


class Driver:
    """`sa-engine run` as a process in a session of its own; it does not outlive its block."""

    def __init__(self, config: str, out: Path, **variables: str) -> None:
        """
        Args:
            variables: of its environment, such as RAY_ADDRESS.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.cli", "run", config, "--out", str(out)],
            env=environment() | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        """Ctrl-C on a terminal: every process of the foreground group gets the signal."""
        os.killpg(self._process.pid, signal.SIGINT)

    def end_session(self) -> None:
        """Ray's agents outlive a raylet that was killed by a minute."""
        _kill([pid for pid, (_, session) in _processes().items() if session == self._process.pid])

    def end(self) -> tuple[int, list[str]]:
        """Wait for the end: exit status (minus the signal that killed it) and lines of stderr."""
        try:
            _, errors = self._process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            _, errors = self._process.communicate()
            raise AssertionError(f"the driver does not end: {errors}") from None
        return self._process.returncode, errors.splitlines()


def take_away(cluster: "Cluster", node: "Node") -> None:
    """A node without power: its raylet dies, and all that the raylet has started."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = [pid for pid, (parent, _) in _processes().items() if parent == raylet]
    cluster.remove_node(node, allow_graceful=False)
    _kill(children)


def is_alive(pid: int) -> bool:
    return pid in _processes()


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that is alive."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                found[int(path.parent.name)] = int(parent), int(session)
    return found


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []
