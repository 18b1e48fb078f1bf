"""How far the round is that waits, as every page shows it."""

import threading
import time

import numpy as np

from engine.effort import effort
from engine.task_tables import TaskKind
from engine.tasks import TaskQueue
from stages.records import Record
from web.open_round import Rounds

FRESH_SECONDS = 5.0


class Progress(Record):
    """Of the tasks of one kind."""

    open: int
    leased: int
    submitted: int
    given_up: int
    withdrawn: int
    reviews_left: int
    masks: int
    """That people drew."""
    seconds_per_mask: float
    """All time on the images over all masks; 0 without masks."""


class RoundProgress:
    """Read anew every few seconds at most, however many look."""

    def __init__(self, queue: TaskQueue, rounds: Rounds) -> None:
        self._queue, self._rounds = queue, rounds
        self._reading = threading.Lock()
        self._clock = time.monotonic
        self._read: dict[TaskKind, Progress] = {}
        self._read_at = -np.inf

    def of(self, kind: TaskKind) -> Progress:
        with self._reading:
            if self._clock() - self._read_at > FRESH_SECONDS:
                self._read, self._read_at = self._count(), self._clock()
            return self._read[kind]

    def _count(self) -> dict[TaskKind, Progress]:
        index = self._rounds.current().index
        counts, done = self._queue.all_counts(index), effort(self._queue, index)
        return {
            kind: Progress(
                **counts[kind].model_dump(),
                reviews_left=counts[TaskKind.REVIEW].left,
                masks=done.masks,
                seconds_per_mask=done.seconds_per_mask,
            )
            for kind in TaskKind
        }
