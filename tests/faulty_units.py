"""Units of work that behave as badly as a test wants; Ray's workers find them by this name."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.context import WorkerContext
from engine.errors import StorageError


@dataclass(frozen=True)
class Echo:
    text: str

    def run(self, context: WorkerContext) -> str:
        return self.text


@dataclass(frozen=True)
class Die:
    """Kills its worker the way the kernel does when memory is short."""

    def run(self, context: WorkerContext) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Raise:
    error: Exception

    def run(self, context: WorkerContext) -> None:
        raise self.error


@dataclass(frozen=True)
class RefuseToWrite:
    def run(self, context: WorkerContext) -> None:
        raise StorageError("cannot write shard: No space left on device")


@dataclass(frozen=True)
class ReturnLock:
    """What it returns cannot travel between processes."""

    def run(self, context: WorkerContext) -> Any:
        return threading.Lock()


@dataclass(frozen=True)
class ReturnBytes:
    """A result too large to travel in a message: it stays on the worker's machine until fetched."""

    size: int

    def run(self, context: WorkerContext) -> bytes:
        return bytes(self.size)


@dataclass(frozen=True)
class Wait:
    """Writes its process id into a file, and returns when that is gone."""

    path: Path

    def run(self, context: WorkerContext) -> int:
        if not self.path.with_suffix(".done").exists():
            self.path.write_text(str(os.getpid()))
            while self.path.exists():
                time.sleep(0.02)
        return os.getpid()
