"""What lies on the annotators' desk: the round that waits for people, its images and its tasks.

Everything is kept as it is made. An accepted mask is a draft in the queue's database from the
moment the page saves it; whoever holds the task next finds it there, and submitting turns the
drafts of a task into its answer.
"""

import io
import json
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from engine import layout
from engine.audit import audited_mask_id
from engine.config import EngineConfig, frozen_config
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.effort import effort
from engine.errors import EngineError
from engine.images import work_size_hw
from engine.manifest import RoundPlan, load_plan
from engine.review import is_reviewed
from engine.rounds import load_outcome
from engine.run import open_queue
from engine.shards import read_record
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import Lease
from model.onnx_decoder import INPUTS, export_decoder
from stages.records import (
    DraftMask,
    ImageRecord,
    ImageStatus,
    Record,
    Rle,
    StageName,
    Submission,
)
from web.masks import SavedMask, check_mask, mask_record

JPEG_QUALITY = 92
PROGRESS_SECONDS = 5.0
FLAGS = "flags"
"""Draft of the prefilled masks that are wrong; every other draft is a mask."""
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
    reviews_left: int
    masks: int
    """That people drew."""
    seconds_per_mask: float
    """All time on the images over all masks; 0 without masks."""


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


class Desk:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.config: EngineConfig = frozen_config(store)
        self._corpus = Corpus(store)
        self.queue = open_queue(store, self.config, lease_seconds=LEASE_SECONDS)
        self._deciding = threading.Lock()
        self._clock = time.monotonic
        self._progress: dict[TaskKind, Progress] = {}
        self._progress_at = -np.inf

    def close(self) -> None:
        self.queue.close()

    @cached_property
    def round(self) -> OpenRound:
        """The round that waits, or the last one that did.

        Raises:
            EngineError: no round waits for people now.
        """
        return self._waiting_round()

    def _waiting_round(self) -> OpenRound:
        for index, mine in enumerate(self.config.rounds):
            folder = self.config.round_folder(index)
            waits = mine.annotator == "people" and mine.stage is not StageName.FULLY_AUTOMATIC
            planned = self.store.exists(layout.plan_path(folder))
            if waits and planned and load_outcome(self.store, folder) is None:
                reviewed = (TaskKind.REVIEW,) if mine.review_share else ()
                return self._open(index, (TaskKind.ANNOTATE, *reviewed))
        for index in range(len(self.config.rounds)):
            if self.queue.counts(index, TaskKind.AUDIT).left:
                return self._open(index, (TaskKind.AUDIT,))
        raise EngineError(
            f"no round of {self.store.uri} waits for people now: give a round `annotator: people` "
            "and start `sa-engine run`, which prepares the tasks; or audit an automatic round with "
            "`sa-engine audit`"
        )

    def _open(self, index: int, kinds: tuple[TaskKind, ...]) -> OpenRound:
        folder = self.config.round_folder(index)
        plan = load_plan(self.store, folder)
        return OpenRound(index, plan, folder, plan.header.checkpoint, kinds)

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

        claimed = lease()
        if claimed is None and self._take_up_next_round():
            claimed = lease()
        return None if claimed is None else self._task(claimed)

    def _has_to_spare(self, kind: TaskKind) -> bool:
        counts = self.queue.counts(self.round.index, kind)
        return counts.open > counts.leased

    def _take_up_next_round(self) -> bool:
        """Whether this round is over and another one waits."""
        with self._deciding:
            if not self._is_over():
                return False
            try:
                following = self._waiting_round()
            except EngineError:
                return False
            if following.index == self.round.index:
                return False
            for name in ("decoder_onnx", "_session", "_context"):
                self.__dict__.pop(name, None)  # they were the last checkpoint's
            self.round = following
            return True

    def _is_over(self) -> bool:
        if TaskKind.AUDIT in self.round.kinds:
            return not self.queue.counts(self.round.index, TaskKind.AUDIT).left
        return load_outcome(self.store, self.round.folder) is not None

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
        header = self.round.plan.header
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
            if draft.draft_id != FLAGS
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
        with self._deciding:
            before = set(self.flagged(lease.task_id))
            after = before | {prefilled_id} if wrong else before - {prefilled_id}
            self.queue.save_draft(lease, FLAGS, json.dumps(sorted(after)))

    def flagged(self, task_id: int) -> tuple[int, ...]:
        drafts = self.queue.drafts(task_id)
        return next((tuple(json.loads(d.content)) for d in drafts if d.draft_id == FLAGS), ())

    def progress(self, kind: TaskKind) -> Progress:
        """Read anew every few seconds at most, however many look."""
        with self._deciding:
            if self._clock() - self._progress_at > PROGRESS_SECONDS:
                self._progress, self._progress_at = self._count(), self._clock()
            return self._progress[kind]

    def _count(self) -> dict[TaskKind, Progress]:
        counts = self.queue.all_counts(self.round.index)
        done = effort(self.queue, self.round.index)
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
        image = self._context.read_image(self._corpus.row(image_id))
        file = io.BytesIO()
        Picture.fromarray(image.pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def embedding(self, image_id: int) -> NDArray[np.float16]:
        """(C, h, w)"""
        row = self._corpus.row(image_id)
        with self._deciding:  # one encoder for all; what is stored is only read
            values = self._context.embedding(row)[0]
        return np.asarray(values.numpy().astype(np.float16))

    def has_image(self, image_id: int) -> bool:
        """Whether it is one of this round's."""
        return self.round.plan.place(image_id) is not None

    # The decoder

    @cached_property
    def decoder_onnx(self) -> bytes:
        path = layout.decoder_path(self.round.checkpoint.partition("@")[0])
        if not self.store.exists(path):
            self.store.publish(path, export_decoder(self._context.checkpoint.sam))
        return self.store.read(path)

    def decode(
        self,
        image_id: int,
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (4, s, s) and predicted IoU (4,), for a page that cannot decode by itself."""
        side = self._context.checkpoint.config.low_res_size
        shown = np.zeros((1, 1, side, side), np.float32)
        if mask_input is not None:
            shown[0, 0] = mask_input
        inputs = (
            self.embedding(image_id)[None].astype(np.float32),
            point_coords[None],
            point_labels[None],
            shown,
            np.asarray([mask_input is not None], np.float32),
        )
        masks, predicted_iou = self._session.run(None, dict(zip(INPUTS, inputs, strict=True)))
        return masks[0], predicted_iou[0]

    @property
    def low_res_size(self) -> int:
        return self._context.checkpoint.config.low_res_size

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(
            self.decoder_onnx, options, providers=["CPUExecutionProvider"]
        )

    @cached_property
    def _context(self) -> WorkerContext:
        checkpoint = layout.checkpoint_path(self.round.checkpoint.partition("@")[0])
        return WorkerContext(
            WorkerSpec(
                store_uri=self.store.uri,
                checkpoint=checkpoint,
                limits=self.config.corpus.limits,
                work_size=self.config.work_size,
                keep_embeddings=True,
            )
        )

    def _task(self, lease: Lease) -> Task:
        row, config = self._corpus.row(lease.image_id), self._context.checkpoint.config
        height, width = self.size_hw(lease.image_id)
        stage = self.round.plan.header.stage
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
            image_size=config.image_size,
            embedding_shape=(config.embed_dim, config.embedding_size, config.embedding_size),
            checkpoint=self.round.checkpoint,
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
