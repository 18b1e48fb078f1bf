"""How the work goes, for whoever runs it: every round's tasks, effort, agreement and model."""

import threading
import time

from engine import layout
from engine.audit import AuditReport, audit_report
from engine.config import EngineConfig
from engine.effort import (
    Agreement,
    Effort,
    TimedEffort,
    agreement,
    agreement_by_author,
    effort,
    effort_by_owner,
    effort_over_time,
    latest_by_owner,
    latest_images,
)
from engine.evaluation import DetectorRecall
from engine.manifest import load_plan, published_shards
from engine.rounds import RoundOutcome, load_outcome, load_start
from engine.status import round_state
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import TaskCounts, TaskQueue
from stages.records import Record, StageName

BINS = 24
PICTURES = 12
PICTURES_EACH = 3
FRESH_SECONDS = 10.0


class AnnotatorFigures(Record):
    name: str
    effort: Effort
    agreement: Agreement
    """Of what they handed in with what reviewers made of it."""
    pictures: tuple[int, ...]
    """Ids of the images that they handed in last."""


class RoundFigures(Record):
    index: int
    stage: StageName
    annotator: str
    state: str
    """waiting, working, sealed or done."""
    images: int
    tasks: TaskCounts
    reviews: TaskCounts
    audit: AuditReport
    effort: Effort
    over_time: tuple[TimedEffort, ...]
    agreement: Agreement
    annotators: tuple[AnnotatorFigures, ...]
    outcome: RoundOutcome | None
    """The model after this round; None until it is over."""
    detector: DetectorRecall | None
    pictures: tuple[int, ...]
    """Ids of images: of those handed in last, or the first ones of an automatic round."""


class Dashboard(Record):
    run: str
    start: RoundOutcome | None
    """The model that the run began with."""
    rounds: tuple[RoundFigures, ...]


class DashboardFigures:
    """Read anew every few seconds at most, however many look."""

    def __init__(self, store: Store, config: EngineConfig, queue: TaskQueue) -> None:
        self._store, self._config, self._queue = store, config, queue
        self._reading = threading.Lock()
        self._shown: Dashboard | None = None
        self._read_at = 0.0

    def now(self) -> Dashboard:
        with self._reading:
            if self._shown is None or time.monotonic() - self._read_at > FRESH_SECONDS:
                self._shown = self._read()
                self._read_at = time.monotonic()
            return self._shown

    def _read(self) -> Dashboard:
        return Dashboard(
            run=self._config.name,
            start=load_start(self._store),
            rounds=tuple(self._round(index) for index in range(len(self._config.rounds))),
        )

    def _round(self, index: int) -> RoundFigures:
        config, store, queue = self._config, self._store, self._queue
        folder, mine = config.round_folder(index), config.rounds[index]
        planned = store.exists(layout.plan_path(folder))
        plan = load_plan(store, folder) if planned else None
        counts = queue.all_counts(index)
        latest = latest_images(queue, index, PICTURES)
        automatic = mine.stage is StageName.FULLY_AUTOMATIC
        recall = layout.recall_path(folder)
        return RoundFigures(
            index=index,
            stage=mine.stage,
            annotator="" if automatic else mine.annotator,
            state=round_state(store, folder),
            images=0 if plan is None else len(plan.image_ids),
            tasks=counts[TaskKind.ANNOTATE],
            reviews=counts[TaskKind.REVIEW],
            audit=audit_report(queue, index),
            effort=effort(queue, index),
            over_time=tuple(effort_over_time(queue, index, BINS)),
            agreement=agreement(queue, index, TaskKind.REVIEW),
            annotators=self._annotators(index),
            outcome=load_outcome(store, folder),
            detector=DetectorRecall.model_validate_json(store.read(recall))
            if store.exists(recall)
            else None,
            pictures=self._first_automatic(index) if automatic and planned else tuple(latest),
        )

    def _annotators(self, index: int) -> tuple[AnnotatorFigures, ...]:
        agreements = agreement_by_author(self._queue, index)
        latest = latest_by_owner(self._queue, index, PICTURES_EACH)
        return tuple(
            AnnotatorFigures(
                name=name,
                effort=done,
                agreement=agreements.get(name, Agreement()),
                pictures=tuple(latest.get(name, ())),
            )
            for name, done in effort_by_owner(self._queue, index).items()
        )

    def _first_automatic(self, index: int) -> tuple[int, ...]:
        """Of the first shard, once it is there."""
        folder = self._config.round_folder(index)
        if 0 not in published_shards(self._store, layout.shards_folder(folder)):
            return ()
        first = load_plan(self._store, folder).shard(0)[:PICTURES_EACH]
        return tuple(int(image_id) for image_id in first)
