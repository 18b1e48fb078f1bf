"""A measured piece of work: in a process of its own, so that its peak memory is its own."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    seconds: float
    """Of the call; starting the process and importing its modules come before."""
    cpu_seconds: float
    """Of the process in the call: what a busy machine does not change much."""
    peak_mb: int
    """Resident, of the whole process since its start."""


def cost_of(work: Callable[..., Any], *arguments: Any) -> Cost:
    """Call a module's function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, work, *arguments).result()


def peak_mb() -> int:
    """Highest resident memory of this process so far.

    Not `getrusage`: what that gives includes the parent's memory at the moment of the fork.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


def measure(work: Callable[..., Any], *arguments: Any) -> Cost:
    """Call a function in this process, whatever it has held before."""
    started, cpu_started = time.monotonic(), time.process_time()
    work(*arguments)
    return Cost(
        seconds=round(time.monotonic() - started, 2),
        cpu_seconds=round(time.process_time() - cpu_started, 2),
        peak_mb=peak_mb(),
    )
