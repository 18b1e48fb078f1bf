"""The paper's audit of automatic masks [§5]: a sample of images, every mask corrected by hand.

The audited round is sealed and stays as it is: corrections are kept beside it, in the queue, and
what comes of them is the share of masks that hardly needed any.
"""

from collections.abc import Iterator
from hashlib import sha256

from engine import layout
from engine.config import EngineConfig
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.decoders import ensure_decoder
from engine.drafts import Draft
from engine.effort import Agreement, agreement
from engine.errors import ConfigError, ImageError
from engine.manifest import load_plan
from engine.progress import Progress
from engine.shards import read_record
from engine.store import Store
from engine.task_tables import TaskKind
from engine.tasks import TaskCounts, TaskQueue
from stages.records import DraftMask, ImageRecord, ImageStatus, Record, StageName

PAPER_ABOVE_90, PAPER_ABOVE_75 = 0.94, 0.97


class AuditReport(Record):
    tasks: TaskCounts
    agreement: Agreement
    """Images whose verdict is reject could not be judged; their masks are not counted."""


def prepare_audit(
    store: Store,
    config: EngineConfig,
    queue: TaskQueue,
    progress: Progress,
    *,
    round_index: int,
    num_images: int,
    seed: int,
) -> int:
    """Make the tasks that do not exist yet, with embeddings for whoever clicks.

    The sample is the first images by a hash of seed and id: the same every time, and a larger one
    holds the smaller.

    Returns:
        How many tasks are new.

    Raises:
        ConfigError: the round is no sealed automatic one.
    """
    check_auditable(store, config, round_index)
    folder = config.round_folder(round_index)
    plan = load_plan(store, folder)
    checkpoint = layout.checkpoint_path(plan.header.checkpoint.partition("@")[0])
    ensure_decoder(store, checkpoint)
    context = WorkerContext(
        WorkerSpec(
            store_uri=store.uri,
            checkpoint=checkpoint,
            limits=config.corpus.limits,
            work_size=config.work_size,
            keep_embeddings=True,
        )
    )
    corpus, new = Corpus(store), 0
    with progress.of(f"preparing the audit of round {round_index}", num_images) as step:
        for record in _sample(store, folder, num_images, seed):
            new += queue.add_audit(round_index, record.image_id, _drafts(record))
            try:
                context.keep_embedding(corpus.row(record.image_id))
            except ImageError as error:
                progress.say(f"{record.file_name}: {error}")  # whoever audits it will be told
            step()
    return new


def check_auditable(store: Store, config: EngineConfig, round_index: int) -> None:
    if not 0 <= round_index < len(config.rounds):
        raise ConfigError(f"no round {round_index}; the run has {len(config.rounds)}")
    sealed = store.exists(layout.manifest_path(config.round_folder(round_index)))
    stage = config.rounds[round_index].stage
    if stage is not StageName.FULLY_AUTOMATIC or not sealed:
        raise ConfigError(
            f"round {round_index} ({stage}) is {'' if sealed else 'not '}sealed; expected a sealed "
            "fully automatic one, see `sa-engine status`; people's work is reviewed while its "
            "round goes on, see review_share"
        )


def audit_report(queue: TaskQueue, round_index: int) -> AuditReport:
    return AuditReport(
        tasks=queue.counts(round_index, TaskKind.AUDIT),
        agreement=agreement(queue, round_index, TaskKind.AUDIT),
    )


def audit_lines(report: AuditReport) -> Iterator[str]:
    """For a terminal; the paper's figures beside ours."""
    tasks, found = report.tasks, report.agreement
    yield f"images    {tasks.submitted} of {tasks.submitted + tasks.left} audited"
    if found.reject:
        yield f"          {found.reject} of them could not be judged"
    if found.compared:
        yield f"masks     {found.compared:,}, {found.deleted} deleted, {found.added} were missing"
        yield f"mean IoU  {found.mean_iou:.3f}, deleted masks counted as 0"
        yield f"above .90 {found.share_above_90:.1%} (the paper: {PAPER_ABOVE_90:.0%})"
        yield f"above .75 {found.share_above_75:.1%} (the paper: {PAPER_ABOVE_75:.0%})"


def audited_mask_id(mask_id: int) -> str:
    """Under which the draft of an automatic mask is kept."""
    return f"{mask_id:032x}"


def _sample(store: Store, folder: str, num_images: int, seed: int) -> Iterator[ImageRecord]:
    """Images that were worked on without failure."""
    plan = load_plan(store, folder)
    places = sorted(
        range(len(plan.image_ids)), key=lambda place: _hash(seed, int(plan.image_ids[place]))
    )
    found = 0
    for place in places:
        shard, row = divmod(place, plan.images_per_shard)
        record = read_record(store, layout.shard_path(layout.shards_folder(folder), shard), row)
        if record.status is ImageStatus.OK:
            found += 1
            yield record
        if found == num_images:
            return


def _hash(seed: int, image_id: int) -> str:
    return sha256(f"audit {seed} {image_id}".encode()).hexdigest()


def _drafts(record: ImageRecord) -> list[Draft]:
    return [
        Draft(
            draft_id=audited_mask_id(mask.id),
            owner="",
            content=DraftMask(
                segmentation=mask.segmentation,
                predicted_iou=mask.predicted_iou,
                stability_score=mask.stability_score,
                seconds=0.0,
                interactions=(),
            ).model_dump_json(),
        )
        for mask in record.masks
    ]
