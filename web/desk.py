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
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from engine import layout
from engine.config import EngineConfig, frozen_config
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.errors import EngineError
from engine.images import work_size_hw
from engine.manifest import RoundPlan, load_plan
from engine.rounds import load_outcome
from engine.run import open_queue
from engine.shards import read_record
from engine.store import Store
from engine.tasks import Lease
from model.onnx_decoder import INPUTS, export_decoder
from stages.records import (
    ImageStatus,
    Interaction,
    MaskRecord,
    Record,
    Rle,
    Source,
    StageName,
    Submission,
)
from stages.rle import rle_area, rle_bbox, uncompressed_counts

JPEG_QUALITY = 92
MAX_INTERACTIONS = 2000
PROGRESS_SECONDS = 5.0
FLAGS = "flags"
"""Draft of the prefilled masks that are wrong; every other draft is a mask."""
LEASE_SECONDS = 120.0
"""Of a person's task, renewed by the page while it is open."""


class InvalidMaskError(EngineError):
    """What a page sent is no mask of this image."""


class DraftMask(Record):
    """A mask that an annotator has accepted, as the page saves it."""

    segmentation: Rle
    predicted_iou: float
    stability_score: float
    seconds: float
    interactions: tuple[Interaction, ...]


class SavedMask(Record):
    mask_id: str
    annotator: str
    mask: DraftMask


class Prefilled(Record):
    id: int
    segmentation: Rle


class Task(Record):
    """Everything that a page needs to begin."""

    task_id: int
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


class Work(Record):
    """What was handed in, of a round or of one annotator."""

    images: int
    masks: int
    seconds_per_mask: float
    """All time on the images over all masks; 0 without masks."""


class AnnotatorWork(Work):
    name: str


class Progress(Work):
    open: int
    leased: int
    submitted: int
    given_up: int
    masks_per_image: float
    by_annotator: tuple[AnnotatorWork, ...]


@dataclass(frozen=True)
class OpenRound:
    """The round that waits for people."""

    index: int
    plan: RoundPlan
    folder: str
    checkpoint: str
    """Label: name and hash."""


class Desk:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.config: EngineConfig = frozen_config(store)
        self._corpus = Corpus(store)
        self.queue = open_queue(store, self.config, lease_seconds=LEASE_SECONDS)
        self._deciding = threading.Lock()
        self._clock = time.monotonic
        self._progress: Progress | None = None
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
                plan = load_plan(self.store, folder)
                return OpenRound(index, plan, folder, plan.header.checkpoint)
        raise EngineError(
            f"no round of {self.store.uri} waits for people now: give a round `annotator: people` "
            "and start `sa-engine run`, which prepares the tasks"
        )

    # Tasks

    def claim(
        self, annotator: str, *, browser: str = "", holding: Collection[int] | None = None
    ) -> Task | None:
        """The next task; of this browser's, one that no page of it works on comes first.

        Args:
            holding: tasks that pages open in this browser work on; None: it cannot tell.
        """

        def lease() -> Lease | None:
            index = self.round.index
            return self.queue.claim(annotator, index, holder=browser, holding=holding)

        claimed = lease()
        if claimed is None and self._take_up_next_round():
            claimed = lease()
        return None if claimed is None else self._task(claimed)

    def _take_up_next_round(self) -> bool:
        """Whether this round is over and another one waits."""
        with self._deciding:
            if load_outcome(self.store, self.round.folder) is None:
                return False
            try:
                following = self._waiting_round()
            except EngineError:
                return False
            for name in ("decoder_onnx", "_session", "_context"):
                self.__dict__.pop(name, None)  # they were the last checkpoint's
            self.round = following
            return True

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
        return self.queue.counts(self.round.index).left

    def save(self, lease: Lease, mask_id: str, mask: DraftMask) -> None:
        """
        Raises:
            InvalidMaskError: its RLE is no mask of this image.
            StaleLeaseError: the lease is not held any more.
        """
        size_hw = self._size_hw(lease.image_id)
        for rle in _rles_of(mask):
            check_rle(rle, size_hw)
        if len(mask.interactions) > MAX_INTERACTIONS:
            raise InvalidMaskError(
                f"{len(mask.interactions)} interactions; expected at most {MAX_INTERACTIONS}"
            )
        self.queue.save_draft(lease, mask_id, mask.model_dump_json())

    def submit(self, lease: Lease, seconds: float) -> None:
        """Hand in what is saved; a second time changes nothing."""
        masks = tuple(
            self._record(number, saved) for number, saved in enumerate(self.saved(lease.task_id))
        )
        flagged = self.flagged(lease.task_id)
        self.queue.submit(lease, Submission(masks=masks, seconds=seconds, flagged=flagged))

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

    def flag(self, lease: Lease, prefilled_id: int, wrong: bool) -> None:
        """Call a prefilled mask wrong, or right again."""
        with self._deciding:
            before = set(self.flagged(lease.task_id))
            after = before | {prefilled_id} if wrong else before - {prefilled_id}
            self.queue.save_draft(lease, FLAGS, json.dumps(sorted(after)))

    def flagged(self, task_id: int) -> tuple[int, ...]:
        drafts = self.queue.drafts(task_id)
        return next((tuple(json.loads(d.content)) for d in drafts if d.draft_id == FLAGS), ())

    def progress(self) -> Progress:
        """Read anew every few seconds at most, however many look."""
        with self._deciding:
            if self._clock() - self._progress_at > PROGRESS_SECONDS:
                self._progress, self._progress_at = self._count(), self._clock()
            assert self._progress is not None
            return self._progress

    def _count(self) -> Progress:
        index = self.round.index
        results = self.queue.results(index, self.round.plan.image_ids.tolist()).values()
        handed_in = [result for result in results if result.submission is not None]
        by_name: dict[str, list[Submission]] = {}
        for result in handed_in:
            assert result.submission is not None
            by_name.setdefault(result.owner, []).append(result.submission)
        every = [submission for mine in by_name.values() for submission in mine]
        counts = self.queue.counts(index)
        return Progress(
            **_work(every),
            open=counts.open,
            leased=counts.leased,
            submitted=counts.submitted,
            given_up=counts.given_up,
            masks_per_image=sum(len(s.masks) for s in every) / max(len(every), 1),
            by_annotator=tuple(
                AnnotatorWork(name=name, **_work(mine)) for name, mine in sorted(by_name.items())
            ),
        )

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
        return bool(np.isin(image_id, self.round.plan.image_ids))

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
        height, width = self._size_hw(lease.image_id)
        stage = self.round.plan.header.stage
        rules = (
            self.config.assisted_manual
            if stage is StageName.ASSISTED_MANUAL
            else self.config.semi_automatic
        )
        return Task(
            task_id=lease.task_id,
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
            masks=self.saved(lease.task_id),
        )

    def _prefilled(self, image_id: int) -> tuple[Prefilled, ...]:
        plan = self.round.plan
        if plan.header.stage is not StageName.SEMI_AUTOMATIC:
            return ()
        (place,) = np.flatnonzero(plan.image_ids == image_id)
        shard, row = divmod(int(place), plan.images_per_shard)
        path = layout.shard_path(layout.proposals_folder(self.round.folder), shard)
        record = read_record(self.store, path, row)
        return tuple(Prefilled(id=m.id, segmentation=m.segmentation) for m in record.masks)

    def _size_hw(self, image_id: int) -> tuple[int, int]:
        row = self._corpus.row(image_id)
        return work_size_hw((row.height, row.width), self.config.work_size)

    def _record(self, number: int, saved: SavedMask) -> MaskRecord:
        mask, header = saved.mask, self.round.plan.header
        height, width = mask.segmentation.size
        points = [a.coords for a in mask.interactions if a.kind == "point"]
        return MaskRecord(
            id=number,
            segmentation=mask.segmentation,
            bbox=rle_bbox(mask.segmentation),
            area=rle_area(mask.segmentation),
            predicted_iou=mask.predicted_iou,
            stability_score=mask.stability_score,
            crop_box=(0.0, 0.0, float(width), float(height)),
            point_coords=tuple((x, y) for x, y in points),
            stage=header.stage,
            round=header.round,
            source=Source.ANNOTATED,
            annotator=saved.annotator,
            seconds=mask.seconds,
            num_clicks=sum(action.kind != "brush" for action in mask.interactions),
            checkpoint=header.checkpoint,
            interactions=mask.interactions,
        )


def check_rle(rle: Rle, size_hw: tuple[int, int]) -> None:
    """
    Raises:
        InvalidMaskError: another frame, no RLE, or runs that do not fill the frame.
    """
    if tuple(rle.size) != size_hw:
        raise InvalidMaskError(f"a mask of {rle.size}; the image is {size_hw}")
    try:
        runs = uncompressed_counts(rle.counts)
    except (ValueError, UnicodeEncodeError) as error:
        raise InvalidMaskError(f"a mask's counts are no RLE: {error}") from error
    if len(runs) == 0 or runs.min() < 0 or int(runs.sum()) != size_hw[0] * size_hw[1]:
        raise InvalidMaskError(f"a mask's runs do not fill {size_hw[0]} x {size_hw[1]} pixels")


def _rles_of(mask: DraftMask) -> list[Rle]:
    strokes = [action.stroke for action in mask.interactions if action.stroke is not None]
    return [mask.segmentation, *(action.answer for action in mask.interactions), *strokes]


def _work(submissions: list[Submission]) -> dict[str, Any]:
    masks = sum(len(submission.masks) for submission in submissions)
    seconds = sum(submission.seconds for submission in submissions)
    return {
        "images": len(submissions),
        "masks": masks,
        "seconds_per_mask": seconds / masks if masks else 0.0,
    }
