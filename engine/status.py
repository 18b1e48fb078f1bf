"""How far a run is: read from its folder, whoever works on it and wherever."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.table import Table

from engine import layout
from engine.audit import AuditReport, audit_lines, audit_report
from engine.config import EngineConfig, frozen_config
from engine.corpus import CORPUS, Corpus
from engine.database import require_file
from engine.effort import Agreement, agreement_by_author
from engine.errors import EngineError
from engine.manifest import load_manifest, load_plan
from engine.rounds import load_outcome
from engine.run import open_queue
from engine.shards import read_footer
from engine.stats import Stats
from engine.store import LocalStore, Store, StoredFile
from engine.task_tables import TaskKind
from engine.tasks import TaskCounts, TaskQueue
from stages.records import ImageStatus, StageName

log = logging.getLogger(__name__)

NO_TASKS = TaskCounts()
READERS = 16
"""Threads that read footers: of an object store, each is waited for."""
FOOTERS_AT_ONCE = 16
"""That a thread adds up before it hands them on: few statistics are in memory, and Ctrl-C is soon
heard."""


@dataclass(frozen=True)
class RoundStatus:
    index: int
    stage: StageName
    state: str
    """waiting, working, sealed (training or evaluating), or done."""
    num_images: int
    shards_done: int
    shards_left: int
    stats: Stats
    """Of the shards done."""
    seconds_per_shard: float | None
    """Between the first shard's appearance and the last; None while there are less than two."""
    tasks: TaskCounts | None = None
    """Of the annotation queue; None for a stage without one, and before it is asked."""
    reviews: TaskCounts = NO_TASKS
    agreement: Mapping[str, Agreement] = field(default_factory=dict)
    """Of reviewed images, by who annotated them."""
    audit: AuditReport | None = None
    """None where nothing is audited."""

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None when it is unknown."""
        if self.shards_left == 0:
            return 0.0
        return None if self.seconds_per_shard is None else self.shards_left * self.seconds_per_shard

    @property
    def images_given_up(self) -> int:
        return self.stats.images.get(ImageStatus.GIVEN_UP, 0)


def run_status(store: Store) -> list[RoundStatus]:
    """From the run's files alone; see `with_tasks`."""
    config = frozen_config(store)
    return [_round_status(store, config, index) for index in range(len(config.rounds))]


def with_tasks(store: Store, rounds: list[RoundStatus]) -> list[RoundStatus]:
    """Rounds, and what the annotation queue knows of them; the same where there is none.

    Raises:
        EngineError: it is out of reach: its disk may be another machine's.
    """
    config = frozen_config(store)
    url = config.execution.tasks_url
    if url is not None:
        require_file(url)  # looking must not create it
    elif not (isinstance(store, LocalStore) and store.exists(layout.TASKS)):
        return rounds
    with closing(open_queue(store, config)) as queue:
        return [
            status
            if status.state == "waiting"
            else replace(status, **_queue_status(queue, config, status.index))
            for status in rounds
        ]


def corpus_lines(store: Store) -> list[str]:
    """The images of the run by source, split and status; empty before they are recorded."""
    if not store.exists(CORPUS):
        return []
    counts = sorted(Corpus(store).counts().items())
    return [
        f"corpus    {source}: {count:,} images, {split}, {status}"
        for (source, split, status), count in counts
    ]


def status_table(rounds: Sequence[RoundStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("round", no_wrap=True)
    for heading in (
        "state",
        "images",
        "shards done",
        "left",
        "images given up",
        "masks",
        "shards/min",
        "time left",
    ):
        table.add_column(heading, justify="right")
    for status in rounds:
        table.add_row(
            f"{status.index} {status.stage}",
            status.state + _tasks(status),
            f"{status.num_images:,}",
            f"{status.shards_done:,}",
            f"{status.shards_left:,}",
            f"{status.images_given_up:,}",
            f"{status.stats.num_masks:,}",
            f"{60 / status.seconds_per_shard:,.1f}" if status.seconds_per_shard else "-",
            "-" if status.seconds_left is None else f"{status.seconds_left / 60:,.0f} min",
        )
    return table


def quality_lines(rounds: Sequence[RoundStatus]) -> Iterator[str]:
    """What reviews and audits have found so far."""
    for status in rounds:
        for name, found in sorted(status.agreement.items()):
            verdicts = f"{found.good} good, {found.redo} to be redone, {found.reject} rejected"
            mean = f"mean IoU {found.mean_iou:.3f} of {found.compared:,} masks"
            yield f"round {status.index} review of {name}: {verdicts}; {mean}"
        if status.audit is not None:
            yield from (f"round {status.index} audit {line}" for line in audit_lines(status.audit))


def round_state(store: Store, folder: str) -> str:
    """See RoundStatus."""
    if not store.exists(layout.plan_path(folder)):
        return "waiting"
    if load_outcome(store, folder) is not None:
        return "done"
    return "sealed" if store.exists(layout.manifest_path(folder)) else "working"


def _round_status(store: Store, config: EngineConfig, index: int) -> RoundStatus:
    folder, stage = config.round_folder(index), config.rounds[index].stage
    if not store.exists(layout.plan_path(folder)):
        return RoundStatus(index, stage, "waiting", 0, 0, 0, Stats(), None)
    plan = load_plan(store, folder)
    shards = [
        file
        for file in store.list(layout.shards_folder(folder))
        if layout.shard_of(file.path) is not None
    ]
    left = plan.num_shards - len(shards)
    return RoundStatus(
        index=index,
        stage=stage,
        state=round_state(store, folder),
        num_images=len(plan.image_ids),
        shards_done=len(shards),
        shards_left=left,
        stats=_stats(store, index, folder, shards),
        seconds_per_shard=_seconds_per_shard(shards),
    )


def _stats(store: Store, index: int, folder: str, shards: Sequence[StoredFile]) -> Stats:
    """Of a sealed round its manifest's; otherwise of every footer that can be read."""
    if store.exists(layout.manifest_path(folder)):
        return load_manifest(store, folder).stats

    def total(start: int) -> tuple[Stats, int]:
        found = [_stats_of(store, file.path) for file in shards[start : start + FOOTERS_AT_ONCE]]
        return Stats.total(stats for stats in found if stats is not None), found.count(None)

    all_stats, unreadable = Stats(), 0
    with ThreadPoolExecutor(READERS) as pool:
        for stats, failed in pool.map(total, range(0, len(shards), FOOTERS_AT_ONCE)):
            all_stats += stats
            unreadable += failed
    if unreadable:
        log.warning(
            "round %d: shards that cannot be read, and are not counted: %d; sa-engine verify "
            "names them",
            index,
            unreadable,
        )
    return all_stats


def _stats_of(store: Store, path: str) -> Stats | None:
    try:
        return read_footer(store, path).stats
    except (EngineError, OSError):
        return None


def _seconds_per_shard(done: Sequence[StoredFile]) -> float | None:
    if len(done) < 2:
        return None
    times = sorted(file.modified for file in done)
    return (times[-1] - times[0]) / (len(times) - 1)


def _queue_status(queue: TaskQueue, config: EngineConfig, index: int) -> dict[str, Any]:
    """What the annotation queue knows of a round."""
    counts, audit = queue.all_counts(index), audit_report(queue, index)
    automatic = config.rounds[index].stage is StageName.FULLY_AUTOMATIC
    return {
        "tasks": None if automatic else counts[TaskKind.ANNOTATE],
        "reviews": counts[TaskKind.REVIEW],
        "agreement": agreement_by_author(queue, index),
        "audit": audit if audit.tasks != NO_TASKS else None,
    }


def _tasks(status: RoundStatus) -> str:
    parts, counts = [], status.tasks
    if counts is not None and counts.left:
        parts.append(f"{counts.submitted:,} of {counts.submitted + counts.left:,} tasks answered")
    if status.reviews.left:
        parts.append(f"{status.reviews.left:,} wait for review")
    if status.audit is not None and status.audit.tasks.left:
        parts.append(f"{status.audit.tasks.left:,} wait for the audit")
    return "".join(f", {part}" for part in parts)
