"""Make the shards of a round, whatever dies meanwhile.

A shard that fails twice is taken apart: each of its images is worked on alone, and published as a
part of its own. An image that fails there `max_attempts` times is given up: its row says so. When
all parts exist they are put together into the shard. So one poisoned image costs the round one
row, and every image has exactly one. What has failed once gets a worker to itself, so that it takes
nothing with it again.

A shard that failed since an image's file could not be had is tried again after a pause, and not
taken apart before several: storage may be away for seconds or minutes, and all that is in progress
fails at once then.

Shards with images that were given up are published last, when it is certain that these are few
enough: where they are too many, a disk may have been away, and each is to be tried anew. Where they
are few the disk may have been away for a minute, which all attempts fit into: before these shards
are published, each image whose file could not be had is tried once more.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from engine import layout
from engine.corpus import CorpusRow
from engine.errors import EngineError, StorageError
from engine.executor import POLL_SECONDS, Done, Executor, Failed
from engine.shards import publish_shard, read_records
from engine.store import Store
from engine.worker import ShardUnit, empty_record
from stages.records import ImageRecord, ImageStatus

log = logging.getLogger(__name__)

WHOLE_ATTEMPTS = 2
"""A dead machine is no fault of the images, so a whole shard gets a second chance."""

PAUSES_SECONDS = (10.0, 60.0, 300.0)
"""Before a whole shard is tried again of which an image's file could not be had; after the last it
fails as any other."""

MAX_WAITING = 16
"""Failures in a row, some of them for want of a file, after which no other shard is begun."""

MAX_FAILURES_IN_A_ROW, LONGEST_STALL_SECONDS = 100, 1800.0
"""Past both nothing works any more: not to go on until millions of images were given up."""

OnShard = Callable[[int], None]
"""Called with the number of each shard that has come to exist."""


@dataclass(frozen=True)
class Patience:
    """How much may go wrong before a run stops."""

    max_attempts: int
    """Times an image may fail alone; once more, at the end, if its file could not be had."""
    max_given_up: int
    """Images that may be given up."""

    @staticmethod
    def of(num_images: int, *, max_attempts: int, share: float) -> "Patience":
        """Three may be given up of a few images, but not all there are."""
        return Patience(max_attempts, max(min(3, num_images - 1), int(share * num_images)))


def make_shards(
    executor: Executor,
    store: Store,
    units: Iterable[ShardUnit],
    patience: Patience,
    on_shard: OnShard,
) -> None:
    """Run every unit until its shard is published.

    Args:
        units: of whole shards; drawn as the executor has room.

    Raises:
        StorageError: a shard could not be written.
        EngineError: more images failed than patience allows, or for half an hour everything did.
    """
    _Production(executor, store, patience, on_shard).run(iter(units))


def too_many_given_up(count: int, last: CorpusRow, error: str) -> EngineError:
    return EngineError(
        f"{count} images failed every attempt, more than execution.max_given_up allows; the last: "
        f"{last.uri}: {error}. What is published stays; mend the cause and run the same command "
        "again"
    )


class _Production:
    def __init__(
        self, executor: Executor, store: Store, patience: Patience, on_shard: OnShard
    ) -> None:
        self._executor, self._store = executor, store
        self._patience, self._on_shard = patience, on_shard
        self._again: deque[ShardUnit] = deque()
        self._later: list[tuple[float, str, ShardUnit]] = []
        """A heap of those that are to be tried again, by the time when; the path breaks ties."""
        self._failures: Counter[str] = Counter()
        """By path of the shard or part."""
        self._pauses: Counter[str] = Counter()
        """Taken so far, by path of the shard."""
        self._in_a_row = 0
        self._last_done = time.monotonic()
        self._apart: dict[str, ShardUnit] = {}
        """Shards taken apart, by path."""
        self._parts_left: Counter[str] = Counter()
        """Parts that do not exist yet, by path of their shard."""
        self._given_up: dict[str, ImageRecord] = {}
        """Records that no part holds, by the path that it would have."""
        self._unavailable: list[ShardUnit] = []
        """Parts among them that are tried once more at the end."""
        self._put_off: list[ShardUnit] = []
        """Shards in which images were given up."""

    def run(self, units: Iterator[ShardUnit]) -> None:
        self._work_off(units)
        if self._unavailable:
            log.info("%d images could not be had; each is tried once more", len(self._unavailable))
            self._work_off(iter(self._unavailable))
        for unit in self._put_off:
            self._put_together(unit)

    def _work_off(self, units: Iterator[ShardUnit]) -> None:
        in_flight = 0
        exhausted = False
        while True:
            while self._executor.has_room():
                unit = self._tried_again()
                if unit is None and not (self._later and self._in_a_row > MAX_WAITING):
                    unit = next(units, None)
                    exhausted = unit is None
                if unit is None:
                    break
                self._executor.submit(unit, alone=self._is_suspect(unit))
                in_flight += 1
            if exhausted and not in_flight and not self._again and not self._later:
                return
            for outcome in self._executor.wait(POLL_SECONDS):
                in_flight -= 1
                self._handle(outcome)

    def _tried_again(self) -> ShardUnit | None:
        if self._again:
            return self._again.popleft()
        if self._later and self._later[0][0] <= time.monotonic():
            return heappop(self._later)[-1]
        return None

    def _is_suspect(self, unit: ShardUnit) -> bool:
        return unit.part is not None or self._failures[unit.path] > 0

    def _handle(self, outcome: Done | Failed) -> None:
        unit: ShardUnit = outcome.unit
        if isinstance(outcome, Done):
            self._in_a_row, self._last_done = 0, time.monotonic()
            self._given_up.pop(unit.path, None)
            self._finished(unit)
            return
        if outcome.storage:
            raise StorageError(outcome.error)
        waits = outcome.unavailable and unit.part is None
        waits = waits and self._pauses[unit.path] < len(PAUSES_SECONDS)
        counted = self._pauses if waits else self._failures
        counted[unit.path] += 1
        failures = counted[unit.path]
        log.warning("%s failed (%d): %s", unit.path, failures, outcome.error)
        self._in_a_row += 1
        if (
            self._in_a_row > MAX_FAILURES_IN_A_ROW
            and time.monotonic() - self._last_done > LONGEST_STALL_SECONDS
        ):
            raise EngineError(
                f"{self._in_a_row} attempts in a row failed, for more than half an hour; the last: "
                f"{unit.path}: {outcome.error}. What is published stays; mend the cause and run "
                "the same command again"
            )
        if waits:
            due = time.monotonic() + PAUSES_SECONDS[failures - 1]
            heappush(self._later, (due, unit.path, unit))
        elif unit.part is None:
            if failures < WHOLE_ATTEMPTS:
                self._again.append(unit)
            else:
                self._take_apart(unit)
        elif failures < self._patience.max_attempts:
            self._again.append(unit)
        else:
            self._give_up(unit, outcome)

    def _take_apart(self, unit: ShardUnit) -> None:
        parts = [replace(unit, part=part, images=(row,)) for part, row in enumerate(unit.images)]
        folder = layout.parts_folder(unit.shards, unit.header.shard)
        existing = {file.path for file in self._store.list(folder)}
        missing = [part for part in parts if part.path not in existing]
        self._apart[unit.path] = unit
        self._parts_left[unit.path] = len(missing)
        self._again.extend(missing)
        if not missing:
            self._put_together(unit)

    def _give_up(self, unit: ShardUnit, failed: Failed) -> None:
        (row,), header, error = unit.images, unit.header, failed.error
        self._given_up[unit.path] = empty_record(
            row, header.stage, header.round, ImageStatus.GIVEN_UP, error
        )
        if len(self._given_up) > self._patience.max_given_up:
            raise too_many_given_up(len(self._given_up), row, error)
        if failed.unavailable and self._failures[unit.path] == self._patience.max_attempts:
            self._unavailable.append(unit)  # its shard waits for it
        else:
            self._finished(unit)

    def _finished(self, unit: ShardUnit) -> None:
        if unit.part is None:
            self._on_shard(unit.header.shard)
            return
        shard = layout.shard_path(unit.shards, unit.header.shard)
        self._parts_left[shard] -= 1
        if self._parts_left[shard] > 0:
            return
        whole = self._apart[shard]
        if any(path in self._given_up for path in _part_paths(whole)):
            self._put_off.append(whole)
        else:
            self._put_together(whole)

    def _put_together(self, unit: ShardUnit) -> None:
        publish_shard(self._store, unit.path, unit.header, self._records_of_parts(unit))
        self._on_shard(unit.header.shard)

    def _records_of_parts(self, unit: ShardUnit) -> Iterator[ImageRecord]:
        for path in _part_paths(unit):
            if path in self._given_up:
                yield self._given_up[path]
            else:
                yield from read_records(self._store, path)


def _part_paths(unit: ShardUnit) -> list[str]:
    shards, shard = unit.shards, unit.header.shard
    return [layout.shard_path(shards, shard, part) for part in range(len(unit.images))]
