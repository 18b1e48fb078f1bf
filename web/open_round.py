"""Which round waits for people: one that they annotate, or one whose masks they audit."""

from dataclasses import dataclass
from functools import cached_property

from engine import layout
from engine.config import EngineConfig
from engine.decoders import load_decoder
from engine.errors import EngineError
from engine.manifest import RoundPlan, load_plan
from engine.rounds import load_outcome
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import TaskQueue
from stages.records import StageName
from web.decoding import DecoderSession


@dataclass(frozen=True)
class OpenRound:
    """The round that waits for people."""

    index: int
    plan: RoundPlan
    folder: str
    checkpoint: str
    """Label: name and hash."""
    kinds: tuple[TaskKind, ...]
    """Of the tasks that there may be."""
    store: Store

    @cached_property
    def decoder(self) -> DecoderSession:
        return DecoderSession(load_decoder(self.store, self.checkpoint))

    def is_over(self, queue: TaskQueue) -> bool:
        if TaskKind.AUDIT in self.kinds:
            return not queue.counts(self.index, TaskKind.AUDIT).left
        return load_outcome(self.store, self.folder) is not None


def waiting_round(store: Store, config: EngineConfig, queue: TaskQueue) -> OpenRound:
    """The first that people annotate; when there is none, the first that they audit.

    Raises:
        EngineError: no round waits for people now.
    """
    for index, mine in enumerate(config.rounds):
        folder = config.round_folder(index)
        waits = mine.annotator == "people" and mine.stage is not StageName.FULLY_AUTOMATIC
        planned = store.exists(layout.plan_path(folder))
        if waits and planned and load_outcome(store, folder) is None:
            reviewed = (TaskKind.REVIEW,) if mine.review_share else ()
            return _open(store, config, index, (TaskKind.ANNOTATE, *reviewed))
    for index in range(len(config.rounds)):
        if queue.counts(index, TaskKind.AUDIT).left:
            return _open(store, config, index, (TaskKind.AUDIT,))
    raise EngineError(
        f"no round of {store.uri} waits for people now: give a round `annotator: people` and start "
        "`sa-engine run`, which prepares the tasks; or audit an automatic round with "
        "`sa-engine audit`"
    )


def _open(store: Store, config: EngineConfig, index: int, kinds: tuple[TaskKind, ...]) -> OpenRound:
    folder = config.round_folder(index)
    plan = load_plan(store, folder)
    return OpenRound(index, plan, folder, plan.header.checkpoint, kinds, store)
