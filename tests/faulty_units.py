"""Work that behaves as badly, or as openly, as a test wants; Ray's workers find it by this name."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.context import WorkerContext
from engine.errors import StorageError
from engine.training import Rank, RetrainingJob, State


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
class Sleep:
    seconds: float

    def run(self, context: WorkerContext) -> None:
        time.sleep(self.seconds)


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


class WitnessedJob(RetrainingJob):
    """Every rank leaves what it would have kept, not the first alone."""

    def keep(self, context: WorkerContext, rank: Rank, state: State) -> None:
        torch.save(state["sam"], Path(self.store_uri) / f"rank-{rank.number}-of-{rank.world_size}")
        super().keep(context, rank, state)
