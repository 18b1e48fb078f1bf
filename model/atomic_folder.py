"""Folders that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGED_PREFIX = ".staged-"


@contextmanager
def atomic_folder(directory: Path) -> Iterator[Path]:
    """Yields a staged folder to fill; leaving the block without error turns it into `directory`.

    An existing `directory` is refused. A process killed on the way leaves only a folder whose
    name starts with STAGED_PREFIX, which nothing reads and anybody may delete.
    """
    _refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = directory.parent / f"{STAGED_PREFIX}{directory.name}-{uuid.uuid4().hex[:8]}"
    staged.mkdir()
    try:
        yield staged
        for path in (*staged.iterdir(), staged):
            _fsync(path)
        _refuse_existing(directory)  # made by somebody else meanwhile, and perhaps still empty
        os.rename(staged, directory)  # noqa: PTH104 (refuses a folder that is not empty)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _fsync(directory.parent)


def _refuse_existing(directory: Path) -> None:
    if directory.exists():
        raise ValueError(f"{directory} exists already; choose another name or delete it first")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
