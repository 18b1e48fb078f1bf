"""Superpixels on their way to a page, which makes its masks of them."""

import gzip
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from model.click_scorer import shipped_click_scorer
from stages.superpixels import Superpixels

LEVEL = 6
"""Of the compression: a photograph's are some 100 kB, in 20 ms."""
WORKERS = max(1, (os.cpu_count() or 1) // 2)
"""Images cut up at a time, and as many crops, each one or two seconds of a core; the others wait,
and hold nothing meanwhile."""

Key = TypeVar("Key")


def packed(superpixels: Superpixels) -> bytes:
    """gzip of little-endian uint32: height, width, A atoms, K segmentations, M unions, B borders, W
    weights; then the atom of each pixel of the work frame, rows first, of each segmentation the
    superpixel of each atom, and the first superpixel of each union and the one after its last. As
    float32 follow the borders' strengths, the unions' depths, and the weights of the scorer of
    clicks, since the page has none of its own."""
    atoms, members = superpixels.atoms, [one.members for one in superpixels.segmentations]
    unions, weights = superpixels.unions, shipped_click_scorer().parameters()
    reals = [unions.borders, unions.depths, *(one.numpy(force=True).ravel() for one in weights)]
    sizes = (
        *(*atoms.shape, len(superpixels.areas), len(members)),
        *(len(unions.depths), len(unions.borders), sum(map(len, reals[2:]))),
    )
    whole = np.concatenate([sizes, atoms.ravel(), *members, unions.runs.ravel()])
    values = whole.astype("<u4").tobytes() + np.concatenate(reals).astype("<f4").tobytes()
    return gzip.compress(values, LEVEL, mtime=0)


class Kept(Generic[Key]):
    """What was made last, made once however many ask for it; failures are not kept."""

    def __init__(self, make: Callable[[Key], bytes], most: int, pool: ThreadPoolExecutor) -> None:
        self._make, self._most, self._pool = make, most, pool
        self._made: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Key) -> Future[bytes]:
        with self._lock:
            made = self._made.get(key)
            if made is None or (made.done() and made.exception() is not None):
                made = self._made[key] = self._pool.submit(self._make, key)
            self._made.move_to_end(key)
            while len(self._made) > self._most:
                self._made.popitem(last=False)
            return made
