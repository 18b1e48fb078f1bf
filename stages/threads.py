"""Calls that share out torch's threads: many small products gain by that, where one is too small.

A decoder of a few tokens has products that a second thread hardly speeds up; two threads that
answer different prompts are nearly twice as fast as one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MAX_THREADS = 8
"""Each needs the memory of a call: 150 to 200 MB for 16 prompts on 64 x 64 cells."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The results for all items, in order; as many calls at a time as torch has threads here, each
    computing on one of them. A single item has them all."""
    threads = min(torch.get_num_threads(), MAX_THREADS, len(items))
    if threads <= 1:
        return [function(item) for item in items]
    mine = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "spread", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, items))
    finally:
        # Of each thread its own, but also what threads to come will begin with.
        torch.set_num_threads(mine)
