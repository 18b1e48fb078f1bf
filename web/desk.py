"""What lies on the annotators' desk: the tasks of the round that waits for people.

Everything is kept as it is made. An accepted mask is a draft in the queue's database from the
moment the page saves it; whoever holds the task next finds it there, and handing in turns the
drafts of a task into its answer.
"""

from collections.abc import Collection, Sequence

from engine.config import EngineConfig, frozen_config
from engine.drafts import Draft
from engine.review import is_reviewed, mask_ious
from engine.run import open_queue
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import Lease
from stages.records import (
    DraftMask,
    ImageStatus,
    Record,
    Review,
    Rle,
    StageName,
    Submission,
    Verdict,
)
from web.encoding import Embed, Encoder
from web.images import RoundImages
from web.masks import InvalidMaskError, SavedMask, check_mask, mask_record
from web.open_round import Rounds
from web.progress import RoundProgress

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
    hands: int
    """Another number than when this annotator last had it: somebody else has, meanwhile."""
    image_id: int
    file_name: str
    width: int
    height: int
    stage: StageName
    max_mask_seconds: float
    zoom_in: bool
    """Small objects are looked at twice."""
    snap: bool
    """Masks are made of superpixels."""
    image_size: int
    embedding_shape: tuple[int, int, int]
    checkpoint: str
    prefilled: tuple[Prefilled, ...]
    flagged: tuple[int, ...]
    """Prefilled ones that an annotator has called wrong."""
    masks: tuple[SavedMask, ...]


class Desk:
    def __init__(self, store: Store, embed: Embed | None = None) -> None:
        """
        Args:
            embed: where images are embedded that nobody has embedded before; None: here.
        """
        self.store = store
        self.config: EngineConfig = frozen_config(store)
        self.queue = open_queue(store, self.config, lease_seconds=LEASE_SECONDS)
        self.rounds = Rounds(store, self.config, self.queue)
        self.images = RoundImages(store, self.config, embed or Encoder(store, self.config))
        self.progress = RoundProgress(self.queue, self.rounds)

    def close(self) -> None:
        self.images.close()
        self.queue.close()

    # Tasks and their leases

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
        known = self.rounds.known
        if ahead and not self._has_to_spare(known.index, kind):
            return None

        def lease() -> Lease | None:
            index = self.rounds.known.index
            return self.queue.claim(annotator, index, kind, holder=browser, holding=holding)

        claimed = lease()
        if claimed is None and self.rounds.current() is not known:
            claimed = lease()
        return None if claimed is None else self._task(claimed)

    def _has_to_spare(self, round_index: int, kind: TaskKind) -> bool:
        counts = self.queue.counts(round_index, kind)
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

    def tasks_left(self) -> int:
        known = self.rounds.known
        counts = self.queue.all_counts(known.index)
        return sum(counts[kind].left for kind in known.kinds)

    # Masks, as they are made

    def save(self, lease: Lease, mask_id: str, mask: DraftMask) -> None:
        """
        Raises:
            InvalidMaskError: it is no mask of this image.
            TooLargeError: the image has as many as there may be.
            StaleLeaseError: the lease is not held any more.
        """
        check_mask(mask, self.images.size_hw(lease.image_id))
        self.queue.save_draft(lease, mask_id, mask.model_dump_json())

    def delete(self, lease: Lease, mask_id: str) -> None:
        self.queue.delete_draft(lease, mask_id)

    def flag(self, lease: Lease, prefilled_id: int, wrong: bool) -> None:
        """Call a prefilled mask wrong, or right again.

        Raises:
            InvalidMaskError: the image has no such mask.
        """
        if prefilled_id not in self.rounds.of(lease).prefilled(lease.image_id):
            raise InvalidMaskError(f"image {lease.image_id} has no prefilled mask {prefilled_id}")
        if wrong:
            self.queue.save_draft(lease, f"{FLAG}{prefilled_id}", "")
        else:
            self.queue.delete_draft(lease, f"{FLAG}{prefilled_id}")

    def saved(self, task_id: int) -> tuple[SavedMask, ...]:
        return _masks(self.queue.drafts(task_id))

    # Answers

    def submit(self, lease: Lease, seconds: float) -> None:
        """Hand in what is saved; a second time changes nothing."""
        header = self.rounds.of(lease).header

        def submission(drafts: list[Draft]) -> Submission:
            return Submission(
                masks=tuple(mask_record(n, mask, header) for n, mask in enumerate(_masks(drafts))),
                seconds=seconds,
                flagged=_flagged(drafts),
            )

        chosen = is_reviewed(self.config, lease.round, lease.image_id)
        self.queue.submit_saved(lease, submission, review=chosen)

    def skip(self, lease: Lease, seconds: float, reason: str) -> None:
        """Pass the image by, a second time changes nothing; prefilled masks called wrong are."""

        def submission(drafts: list[Draft]) -> Submission:
            return Submission(
                seconds=seconds,
                status=ImageStatus.SKIPPED,
                error=reason,
                flagged=_flagged(drafts),
            )

        self.queue.submit_saved(lease, submission)

    def review(self, lease: Lease, seconds: float, verdict: Verdict, note: str) -> None:
        """End a review or an audit; a second time changes nothing."""
        mine = self.rounds.of(lease)
        if lease.subject is None:
            before = mine.automatic_masks(lease.image_id)
        else:
            looked_at = self.saved(lease.subject)
            before = {one.mask_id: one.mask.segmentation for one in looked_at}

        def found(drafts: list[Draft]) -> Review:
            left = _masks(drafts)
            after = {one.mask_id: one.mask.segmentation for one in left}
            return Review(
                verdict=verdict,
                note=note,
                masks=tuple(mask_record(n, mask, mine.header) for n, mask in enumerate(left)),
                flagged=_flagged(drafts),
                seconds=seconds,
                ious=mask_ious(before, after),
                deleted=len(before.keys() - after.keys()),
                added=len(after.keys() - before.keys()),
            )

        self.queue.settle(lease, found)

    def _task(self, lease: Lease) -> Task:
        mine, image_id = self.rounds.of(lease), lease.image_id
        decoder, stage = mine.decoder.file, mine.header.stage
        height, width = self.images.size_hw(image_id)
        rules = (
            self.config.assisted_manual
            if stage is StageName.ASSISTED_MANUAL
            else self.config.semi_automatic
        )
        drafts = self.queue.drafts(lease.task_id)
        masks = _masks(drafts)
        if lease.kind is TaskKind.AUDIT:  # their logs begin with what the model drew
            drawn = mine.automatic_masks(image_id)
            masks = tuple(m.model_copy(update={"base": drawn.get(m.mask_id)}) for m in masks)
        prefilled = mine.prefilled(image_id).items()
        return Task(
            task_id=lease.task_id,
            kind=lease.kind,
            note=lease.note,
            lease=lease.token,
            expires_in=LEASE_SECONDS,
            hands=lease.hands,
            image_id=image_id,
            file_name=self.images.row(image_id).file_name,
            width=width,
            height=height,
            stage=stage,
            max_mask_seconds=rules.max_mask_seconds,
            zoom_in=self.config.zoom_in,
            snap=self.config.snap,
            image_size=decoder.image_size,
            embedding_shape=decoder.embedding_shape,
            checkpoint=mine.checkpoint,
            prefilled=tuple(Prefilled(id=i, segmentation=rle) for i, rle in prefilled),
            flagged=_flagged(drafts),
            masks=masks,
        )


def _masks(drafts: Sequence[Draft]) -> tuple[SavedMask, ...]:
    return tuple(
        SavedMask(
            mask_id=draft.draft_id,
            annotator=draft.owner,
            mask=DraftMask.model_validate_json(draft.content),
        )
        for draft in drafts
        if not draft.draft_id.startswith(FLAG)
    )


def _flagged(drafts: Sequence[Draft]) -> tuple[int, ...]:
    names = (draft.draft_id for draft in drafts)
    return tuple(sorted(int(n.removeprefix(FLAG)) for n in names if n.startswith(FLAG)))
