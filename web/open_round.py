"""Which round waits for people: one that they annotate, or one whose masks they audit."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from engine import layout
from engine.audit import audited_mask_id
from engine.config import EngineConfig
from engine.decoders import load_decoder
from engine.errors import EngineError
from engine.manifest import PlanHeader, RoundPlan, load_plan
from engine.rounds import load_outcome
from engine.shards import read_record
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import Lease, TaskQueue
from stages.records import ImageRecord, Rle, StageName
from web.decoding import DecoderSession


@dataclass(frozen=True)
class OpenRound:
    """A round that waits for people, or did."""

    index: int
    plan: RoundPlan
    folder: str
    kinds: tuple[TaskKind, ...]
    """Of the tasks that there may be."""
    store: Store

    @property
    def header(self) -> PlanHeader:
        return self.plan.header

    @property
    def checkpoint(self) -> str:
        """Label: name and hash."""
        return self.header.checkpoint

    @cached_property
    def decoder(self) -> DecoderSession:
        return DecoderSession(load_decoder(self.store, self.checkpoint))

    def prefilled(self, image_id: int) -> dict[int, Rle]:
        """Locked masks by their ids; none but in stage two."""
        if self.header.stage is not StageName.SEMI_AUTOMATIC:
            return {}
        record = self._record(layout.proposals_folder(self.folder), image_id)
        return {mask.id: mask.segmentation for mask in record.masks}

    def automatic_masks(self, image_id: int) -> dict[str, Rle]:
        """Of an audited round, by the ids of their drafts."""
        record = self._record(layout.shards_folder(self.folder), image_id)
        return {audited_mask_id(mask.id): mask.segmentation for mask in record.masks}

    def is_over(self, queue: TaskQueue) -> bool:
        if TaskKind.AUDIT in self.kinds:
            return not queue.counts(self.index, TaskKind.AUDIT).left
        return load_outcome(self.store, self.folder) is not None

    def _record(self, shards: str, image_id: int) -> ImageRecord:
        place = self.plan.place(image_id)
        assert place is not None, f"image {image_id} is not one of round {self.index}"
        shard, row = place
        return read_record(self.store, layout.shard_path(shards, shard), row)


class Rounds:
    """The round that waits, as one server among several knows it."""

    def __init__(self, store: Store, config: EngineConfig, queue: TaskQueue) -> None:
        self._store, self._config, self._queue = store, config, queue
        self._deciding = threading.Lock()
        self._known: OpenRound | None = None

    @property
    def known(self) -> OpenRound:
        """The one that waited when this process last looked.

        Raises:
            EngineError: no round waits for people now.
        """
        return self._known or self.current()

    def current(self) -> OpenRound:
        """The one that waits, or the last one that did; looked for when the known one is over.

        People may have finished it through another server. What is asked often asks for `known`,
        and comes here when it is about something which that round does not know. Raises as `known`.
        """
        with self._deciding:
            if self._known is None:
                self._known = waiting_round(self._store, self._config, self._queue)
            elif self._known.is_over(self._queue):
                with suppress(EngineError):
                    self._known = waiting_round(self._store, self._config, self._queue)
            return self._known

    def of(self, lease: Lease) -> OpenRound:
        """Also one that is over: what was handed in under the lease may arrive again."""
        found = self._which(lambda one: one.index == lease.round)
        return found or _open(self._store, self._config, lease.round, (lease.kind,))

    def with_image(self, image_id: int) -> OpenRound | None:
        """None when the image is not one of those that people work on now."""
        return self._which(lambda one: one.plan.place(image_id) is not None)

    def _which(self, fits: Callable[[OpenRound], bool]) -> OpenRound | None:
        found = self.known if fits(self.known) else self.current()
        return found if fits(found) else None


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
    return OpenRound(index, load_plan(store, folder), folder, kinds, store)
