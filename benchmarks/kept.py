"""What is computed of each image once, and found again when the same command is given again."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.seed_data import LabelledImage
from engine.context import load_run_checkpoint
from engine.store import open_store
from model.sam import Sam

Arrays = Mapping[str, NDArray[Any]]


def arrays_kept(
    work: Path, image: LabelledImage, made_by: object, make: Callable[[], Arrays]
) -> dict[str, NDArray[Any]]:
    """As in the work folder, where they are of this very image and of what makes them.

    Args:
        made_by: checkpoint, networks and settings; what its `repr` shows.
    """
    told = repr((made_by, image.rles)).encode()
    key = hashlib.sha256(image.path.read_bytes() + told).hexdigest()
    kept = work / f"{image.path.stem}-{key[:16]}.npz"
    if not kept.exists():
        part = kept.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **make())
        part.replace(kept)
    with np.load(kept) as arrays:
        return dict(arrays)


@cache
def sam_of(checkpoint: str) -> Sam:
    """On one thread, for workers that work side by side."""
    torch.set_num_threads(1)
    return load_run_checkpoint(open_store("."), checkpoint).sam
