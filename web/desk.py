"""What lies on the annotators' desk: the round that waits for people, its images and its tasks.

Everything is kept as it is made. An accepted mask is a draft in the queue's database from the
moment the page saves it; whoever holds the task next finds it there, and submitting turns the
drafts of a task into its answer.
"""

import io
import threading
import time
from collections.abc import Collection
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from engine import layout
from engine.audit import audited_mask_id
from engine.config import EngineConfig, frozen_config
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.effort import effort
from engine.embeddings import load_embedding
from engine.errors import EngineError, StaleLeaseError
from engine.images import work_size_hw
from engine.review import is_reviewed
from engine.run import open_queue
from engine.shards import read_record
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import Lease
from stages.records import (
    DraftMask,
    ImageRecord,
    ImageStatus,
    Record,
    Rle,
    StageName,
    Submission,
)
from web.encoding import Embed, Encoder
from web.masks import SavedMask, check_mask, mask_record
from web.open_round import OpenRound, waiting_round

JPEG_QUALITY = 92
PROGRESS_SECONDS = 5.0
FLAG = "flag-"
"""Begins the name of a draft that calls a prefilled mask wrong; every other draft is a mask."""
LEASE_SECONDS = 120.0
"""Of a person's task, renewed by the page while it is open."""


class Prefilled(Record):
    id: int
    segmentation: Rle


class Task(Record):
    """Everything that a page needs to begin."""

    task_id: int
    kind: TaskKind
    note: str
    """Of the reviewer who sent the image back; mostly empty."""
    lease: str
    expires_in: float
    image_id: int
    file_name: str
    width: int
    height: int
    stage: StageName
    max_mask_seconds: float
    image_size: int
    embedding_shape: tuple[int, int, int]
    checkpoint: str
    prefilled: tuple[Prefilled, ...]
    flagged: tuple[int, ...]
    """Prefilled ones that an annotator has called wrong."""
    masks: tuple[SavedMask, ...]


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


class Desk:
    def __init__(self, store: Store, embed: Embed | None = None) -> None:
        """
        Args:
            embed: where images are embedded that nobody has embedded before; None: here.
        """
        self.store = store
        self.config: EngineConfig = frozen_config(store)
        self._corpus = Corpus(store)
        self.queue = open_queue(store, self.config, lease_seconds=LEASE_SECONDS)
        self._embed = embed or Encoder(store, self.config)
        self._images = WorkerContext(
            WorkerSpec(
                store_uri=store.uri,
                checkpoint="",
                limits=self.config.corpus.limits,
                work_size=self.config.work_size,
            )
        )
        self._deciding = threading.RLock()
        self._round: OpenRound | None = None
        self._clock = time.monotonic
        self._progress: dict[TaskKind, Progress] = {}
        self._progress_at = -np.inf

    def close(self) -> None:
        self.queue.close()

    @property
    def round(self) -> OpenRound:
        """The round that waits, as far as this process knows; see `current_round`.

        Raises:
            EngineError: no round waits for people now.
        """
        if self._round is None:
            self._round = waiting_round(self.store, self.config, self.queue)
        return self._round

    def current_round(self) -> OpenRound:
        """The round that waits, or the last one that did; looked for when the known one is over.

        People may have finished it through another server. What is asked often asks for `round`,
        and comes here when it is about something which that round does not know.
        """
        with self._deciding:
            if self.round.is_over(self.queue):
                with suppress(EngineError):
                    self._round = waiting_round(self.store, self.config, self.queue)
            return self.round

    def round_of(self, lease: Lease) -> OpenRound:
        """
        Raises:
            StaleLeaseError: it is over, and another one waits.
        """
        known = self.round if lease.round == self.round.index else self.current_round()
        if lease.round != known.index:
            raise StaleLeaseError(f"round {lease.round} is over; claim a task")
        return known

    # Tasks

    def claim(
        self,
        annotator: str,
        kind: TaskKind,
        *,
        browser: str = "",
        holding: Collection[int] | None = None,
        ahead: bool = False,
    ) -> Task | None:
        """The next task; of this browser's, one that no page of it works on comes first.

        Args:
            holding: tasks that pages open in this browser work on; None: it cannot tell.
            ahead: the page has one in work already; it gets none when few are left for others.
        """
        if ahead and not self._has_to_spare(kind):
            return None

        def lease() -> Lease | None:
            index = self.round.index
            return self.queue.claim(annotator, index, kind, holder=browser, holding=holding)

        known, claimed = self.round, lease()
        if claimed is None and self.current_round() is not known:
            claimed = lease()
        return None if claimed is None else self._task(claimed)

    def _has_to_spare(self, kind: TaskKind) -> bool:
        counts = self.queue.counts(self.round.index, kind)
        return counts.open > counts.leased

    def lease(self, task_id: int, token: str) -> Lease:
        """
        Raises:
            StaleLeaseError: the token is not the task's.
        """
        return self.queue.lease_of(task_id, token)

    def renew(self, lease: Lease) -> float:
        """Seconds that it now has."""
        self.queue.renew(lease)
        return LEASE_SECONDS

    def release(self, lease: Lease) -> None:
        self.queue.release(lease)

    def delete(self, lease: Lease, mask_id: str) -> None:
        self.queue.delete_draft(lease, mask_id)

    def tasks_left(self) -> int:
        counts = self.queue.all_counts(self.round.index)
        return sum(counts[kind].left for kind in self.round.kinds)

    def save(self, lease: Lease, mask_id: str, mask: DraftMask) -> None:
        """
        Raises:
            InvalidMaskError: its RLE is no mask of this image.
            StaleLeaseError: the lease is not held any more.
        """
        check_mask(mask, self.size_hw(lease.image_id))
        self.queue.save_draft(lease, mask_id, mask.model_dump_json())

    def submit(self, lease: Lease, seconds: float) -> None:
        """Hand in what is saved; a second time changes nothing."""
        header = self.round_of(lease).plan.header
        saved = enumerate(self.saved(lease.task_id))
        submission = Submission(
            masks=tuple(mask_record(number, mask, header) for number, mask in saved),
            seconds=seconds,
            flagged=self.flagged(lease.task_id),
        )
        chosen = is_reviewed(self.config, lease.round, lease.image_id)
        self.queue.submit(lease, submission, review=chosen)

    def skip(self, lease: Lease, seconds: float, reason: str) -> None:
        submission = Submission(seconds=seconds, status=ImageStatus.SKIPPED, error=reason)
        self.queue.submit(lease, submission)

    def saved(self, task_id: int) -> tuple[SavedMask, ...]:
        return tuple(
            SavedMask(
                mask_id=draft.draft_id,
                annotator=draft.owner,
                mask=DraftMask.model_validate_json(draft.content),
            )
            for draft in self.queue.drafts(task_id)
            if not draft.draft_id.startswith(FLAG)
        )

    def _shown(self, lease: Lease) -> tuple[SavedMask, ...]:
        """Saved masks; corrected automatic ones with what they were, where their log begins."""
        saved = self.saved(lease.task_id)
        if lease.kind is not TaskKind.AUDIT:
            return saved
        before = self.automatic_masks(lease.image_id)
        return tuple(one.model_copy(update={"base": before.get(one.mask_id)}) for one in saved)

    def flag(self, lease: Lease, prefilled_id: int, wrong: bool) -> None:
        """Call a prefilled mask wrong, or right again."""
        if wrong:
            self.queue.save_draft(lease, f"{FLAG}{prefilled_id}", "")
        else:
            self.queue.delete_draft(lease, f"{FLAG}{prefilled_id}")

    def flagged(self, task_id: int) -> tuple[int, ...]:
        drafts = (draft.draft_id for draft in self.queue.drafts(task_id))
        return tuple(sorted(int(i.removeprefix(FLAG)) for i in drafts if i.startswith(FLAG)))

    def progress(self, kind: TaskKind) -> Progress:
        """Read anew every few seconds at most, however many look."""
        with self._deciding:
            if self._clock() - self._progress_at > PROGRESS_SECONDS:
                self._progress, self._progress_at = self._count(), self._clock()
            return self._progress[kind]

    def _count(self) -> dict[TaskKind, Progress]:
        index = self.current_round().index
        counts = self.queue.all_counts(index)
        done = effort(self.queue, index)
        return {
            kind: Progress(
                **counts[kind].model_dump(),
                reviews_left=counts[TaskKind.REVIEW].left,
                masks=done.masks,
                seconds_per_mask=done.seconds_per_mask,
            )
            for kind in TaskKind
        }

    # Images

    def image_jpeg(self, image_id: int) -> bytes:
        """The image upright, at its work size."""
        image = self._images.read_image(self._corpus.row(image_id))
        file = io.BytesIO()
        Picture.fromarray(image.pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def embedding(self, image_id: int) -> NDArray[np.float16]:
        """(C, h, w)"""
        row, known = self._corpus.row(image_id), self.round
        values = load_embedding(self.store, known.decoder.file.encoder_sha256, row.sha256)
        if values is None:
            values = self._embed(known.checkpoint, row)
        return np.asarray(values[0])

    def has_image(self, image_id: int) -> bool:
        """Whether it is one of this round's."""
        known = self.round
        if known.plan.place(image_id) is None:
            known = self.current_round()
        return known.plan.place(image_id) is not None

    def decode(
        self,
        image_id: int,
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `DecoderSession.decode`, for a page that cannot decode by itself."""
        embedding = self.embedding(image_id)
        return self.round.decoder.decode(embedding, point_coords, point_labels, mask_input)

    def _task(self, lease: Lease) -> Task:
        row, known = self._corpus.row(lease.image_id), self.round_of(lease)
        decoder = known.decoder.file
        height, width = self.size_hw(lease.image_id)
        stage = known.plan.header.stage
        rules = (
            self.config.assisted_manual
            if stage is StageName.ASSISTED_MANUAL
            else self.config.semi_automatic
        )
        return Task(
            task_id=lease.task_id,
            kind=lease.kind,
            note=lease.note,
            lease=lease.token,
            expires_in=LEASE_SECONDS,
            image_id=lease.image_id,
            file_name=row.file_name,
            width=width,
            height=height,
            stage=stage,
            max_mask_seconds=rules.max_mask_seconds,
            image_size=decoder.image_size,
            embedding_shape=decoder.embedding_shape,
            checkpoint=known.checkpoint,
            prefilled=self._prefilled(lease.image_id),
            flagged=self.flagged(lease.task_id),
            masks=self._shown(lease),
        )

    def _prefilled(self, image_id: int) -> tuple[Prefilled, ...]:
        if self.round.plan.header.stage is not StageName.SEMI_AUTOMATIC:
            return ()
        record = self._record(layout.proposals_folder(self.round.folder), image_id)
        return tuple(Prefilled(id=m.id, segmentation=m.segmentation) for m in record.masks)

    def automatic_masks(self, image_id: int) -> dict[str, Rle]:
        """Of an audited round, by the ids of their drafts."""
        record = self._record(layout.shards_folder(self.round.folder), image_id)
        return {audited_mask_id(mask.id): mask.segmentation for mask in record.masks}

    def _record(self, shards: str, image_id: int) -> ImageRecord:
        place = self.round.plan.place(image_id)
        assert place is not None, f"image {image_id} is not one of round {self.round.index}"
        shard, row = place
        return read_record(self.store, layout.shard_path(shards, shard), row)

    def size_hw(self, image_id: int) -> tuple[int, int]:
        row = self._corpus.row(image_id)
        return work_size_hw((row.height, row.width), self.config.work_size)
