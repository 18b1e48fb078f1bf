"""Calls that share out torch's threads: many small products gain by that, where one is too small.

A decoder of a few tokens has products that a second thread hardly speeds up; two threads that
answer different prompts are nearly twice as fast as one.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MAX_THREADS = 8
"""Each needs the memory of a call: 150 to 200 MB for 16 prompts on 64 x 64 cells."""

_setting = threading.Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results for all items, in order; as many calls at a time as torch has threads here, each
    computing on one of them. A single item has them all."""
    threads = min(torch.get_num_threads(), MAX_THREADS, len(items))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, "spread", compute_alone) as pool:
        return list(pool.map(function, items))


def compute_alone() -> None:
    """From now on this thread computes on one core; others, and those to come, on as many as ever.

    To begin a pool's threads with.
    """
    with _setting:  # or another of the pool would take this one's 1 for what is usual
        usual = torch.get_num_threads()
        torch.set_num_threads(1)  # of this thread, but also what threads to come would begin with
        restoring = threading.Thread(target=torch.set_num_threads, args=(usual,))
        restoring.start()
        restoring.join()
