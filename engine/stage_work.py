"""The work of a round's stage: from its plan to its published shards.

The automatic stage is shards made by workers. The other two are tasks answered by annotators, in
stage two after workers have made shards of proposals; their answers are assembled into shards here.
"""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from engine import layout
from engine.annotation import AnnotationUnit, answer_tasks, assemble_shard
from engine.config import EngineConfig
from engine.context import WorkerContext
from engine.corpus import CorpusRow
from engine.decoders import ensure_decoder
from engine.effort import effort
from engine.errors import EngineError, StorageError, UnreadableImageError
from engine.evaluation import evaluate_detector
from engine.executor import Executor, Failed, run_all
from engine.manifest import RoundPlan, published_shards
from engine.production import Patience, make_shards
from engine.run import Run, held_out, tasks_of
from engine.shards import ShardHeader, read_footer
from engine.store import Store
from engine.task_results import task_results
from engine.task_tables import TaskKind
from engine.tasks import Lease, TaskQueue
from engine.training import DetectorJob
from engine.worker import ShardUnit
from stages.fully_automatic import FullyAutomaticConfig
from stages.records import StageName
from stages.semi_automatic import SemiAutomaticConfig

log = logging.getLogger(__name__)

PEOPLE_POLL_SECONDS = 1.0
QUEUE_RETRY_SECONDS, QUEUE_AWAY_SECONDS = 10.0, 1800.0
"""Between looks at a queue that is away while people are waited for, and for how long at most."""
ANNOTATOR = "simulated"
"""Owner of the leases of the simulated annotator."""


def annotate_automatically(run: Run, plan: RoundPlan, folder: str, checkpoint: str) -> None:
    with run.workers(checkpoint) as executor:
        _make_shards(run, executor, plan, layout.shards_folder(folder), run.config.fully_automatic)


def annotate_with_tasks(run: Run, plan: RoundPlan, folder: str, checkpoint: str) -> None:
    proposals = None
    if plan.header.stage is StageName.SEMI_AUTOMATIC:
        proposals = layout.proposals_folder(folder)
        detector = _train_detector(run, plan.header.round, checkpoint)
        with run.workers(checkpoint, detector) as executor:
            _evaluate_detector(run, executor, folder)
            _make_shards(run, executor, plan, proposals, run.config.semi_automatic)
    with tasks_of(run) as queue:
        if run.config.rounds[plan.header.round].annotator == "people":
            ensure_decoder(run.store, checkpoint)
            _embed(run, plan, checkpoint)
            queue.add(plan.header.round, plan.image_ids.tolist())
            _wait_for_people(run, queue, plan)
        else:
            queue.add(plan.header.round, plan.image_ids.tolist())
            _answer(run, queue, plan, proposals, checkpoint)
        _assemble(run, queue, plan, folder, proposals)


def _make_shards(
    run: Run,
    executor: Executor,
    plan: RoundPlan,
    shards: str,
    stage_config: FullyAutomaticConfig | SemiAutomaticConfig,
) -> None:
    existing = published_shards(run.store, shards)
    units = (
        ShardUnit(
            header=_header(plan, shard),
            images=tuple(run.corpus.rows(plan.shard(shard).tolist())),
            shards=shards,
            stage_config=stage_config,
            seed=run.config.seed,
        )
        for shard in range(plan.num_shards)
        if shard not in existing
    )
    patience = _patience(run, plan)
    what = f"{shards.rpartition('/')[2]} of round {plan.header.round}"
    with run.progress.of(what, plan.num_shards, len(existing)) as step:

        def on_shard(shard: int) -> None:
            _log_shard(run.store, layout.shard_path(shards, shard))
            step()

        make_shards(executor, run.store, units, patience, on_shard)


@dataclass(frozen=True)
class EmbedUnit:
    """Store the embedding of an image, so that nobody waits for it."""

    row: CorpusRow

    def run(self, context: WorkerContext) -> None:
        with suppress(UnreadableImageError):  # the annotator will be told
            context.keep_embedding(self.row)


def _embed(run: Run, plan: RoundPlan, checkpoint: str) -> None:
    units = (
        EmbedUnit(row)
        for shard in range(plan.num_shards)
        for row in run.corpus.rows(plan.shard(shard).tolist())
    )
    what = f"embedding the images of round {plan.header.round}"
    with (
        run.workers(checkpoint, keep_embeddings=True) as executor,
        run.progress.of(what, len(plan.image_ids)) as step,
    ):
        for outcome in run_all(executor, units):
            if isinstance(outcome, Failed):
                if outcome.storage:
                    raise StorageError(outcome.error)
                # Only made ahead: the page asks for what is missing, and says what is wrong.
                log.warning("%s is not embedded: %s", outcome.unit.row.uri, outcome.error)
            step()


def _wait_for_people(run: Run, queue: TaskQueue, plan: RoundPlan) -> None:
    """Until no task is left and none waits for review; people work at a server of their own, on the
    same queue."""
    index, total = plan.header.round, len(plan.image_ids)
    left, reviews = _left(run, queue, index)
    if not left and not reviews:
        return
    run.progress.say(
        f"round {index} waits for people: sa-engine annotate {run.store.uri}; this command goes on "
        "by itself when they are done, also when it is stopped and started again in between"
    )
    with run.progress.of(f"tasks of round {index}", total, total - left) as step:
        while left:
            time.sleep(PEOPLE_POLL_SECONDS)
            now, reviews = _left_at_last(run, queue, index)
            for _ in range(left - now):
                step()
            left = now
    if reviews:
        run.progress.say(
            f"round {index}: images that wait for review: {reviews}, by somebody of role "
            "reviewer or manager who had no hand in them: sa-engine annotators add "
            f"{run.store.uri} NAME --role reviewer"
        )
        while sum(_left_at_last(run, queue, index)):  # reviewers may send some back
            time.sleep(PEOPLE_POLL_SECONDS)


def _left_at_last(run: Run, queue: TaskQueue, index: int) -> tuple[int, int]:
    """As `_left`; a database that starts anew is waited for, as the annotators do."""
    deadline = time.monotonic() + QUEUE_AWAY_SECONDS
    while True:
        try:
            return _left(run, queue, index)
        except StorageError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s (asked again)", error)
            time.sleep(QUEUE_RETRY_SECONDS)


def _left(run: Run, queue: TaskQueue, index: int) -> tuple[int, int]:
    """Tasks and reviews that are not done; what nobody has begun is withdrawn at the target."""
    target = run.config.rounds[index].target_masks
    if target is not None and effort(queue, index).masks >= target:
        queue.withdraw(index, f"the round has its {target} masks")
    counts = queue.all_counts(index)
    return counts[TaskKind.ANNOTATE].left, counts[TaskKind.REVIEW].left


def _answer(
    run: Run, queue: TaskQueue, plan: RoundPlan, proposals: str | None, checkpoint: str
) -> None:
    config, index = run.config, plan.header.round
    counts = queue.counts(index)
    if counts.left == 0:
        return
    limit = (
        config.assisted_manual.max_mask_seconds
        if proposals is None
        else config.semi_automatic.max_mask_seconds
    )
    places = {int(image_id): place for place, image_id in enumerate(plan.image_ids)}

    def unit_of(lease: Lease) -> AnnotationUnit:
        shard, row = divmod(places[lease.image_id], plan.images_per_shard)
        return AnnotationUnit(
            row=run.corpus.row(lease.image_id),
            lease=lease,
            header=_header(plan, shard),
            annotator=config.simulated_annotator,
            max_mask_seconds=limit,
            zoom_in=config.zoom_in,
            snap=config.snap,
            seed=config.seed,
            prefilled=None if proposals is None else (layout.shard_path(proposals, shard), row),
        )

    total = len(plan.image_ids)
    with (
        run.workers(checkpoint) as executor,
        run.progress.of(f"tasks of round {index}", total, total - counts.left) as step,
    ):
        answer_tasks(
            executor,
            queue,
            index,
            owner=ANNOTATOR,
            unit_of=unit_of,
            lease_seconds=config.execution.lease_seconds,
            max_given_up=_patience(run, plan).max_given_up,
            on_task=step,
        )


def _assemble(
    run: Run, queue: TaskQueue, plan: RoundPlan, folder: str, proposals: str | None
) -> None:
    shards = layout.shards_folder(folder)
    for shard in sorted(set(range(plan.num_shards)) - published_shards(run.store, shards)):
        image_ids = plan.shard(shard).tolist()
        assemble_shard(
            run.store,
            _header(plan, shard),
            run.corpus.rows(image_ids),
            task_results(queue, plan.header.round, image_ids),
            shards=shards,
            proposals=proposals,
            work_size=run.config.work_size,
        )


def _patience(run: Run, plan: RoundPlan) -> Patience:
    execution = run.config.execution
    return Patience.of(
        len(plan.image_ids), max_attempts=execution.max_attempts, share=execution.max_given_up
    )


def _log_shard(store: Store, path: str) -> None:
    try:
        footer = read_footer(store, path)
    except (EngineError, OSError) as error:  # it is there, and sealing will read it again
        log.warning("%s was published and cannot be read now: %s", path, error)
        return
    log.info(
        "round=%d shard=%06d masks=%d dropped=%d seconds=%.1f",
        footer.header.round,
        footer.header.shard,
        footer.num_masks,
        sum(footer.stats.drops.values()),
        footer.wall_seconds,
    )


def _train_detector(run: Run, index: int, checkpoint: str) -> str:
    """The detector of a semi-automatic round, trained on all masks so far."""
    path = layout.detector_path(f"round-{index:02d}")
    if not run.store.has_folder(path):
        run.progress.say(f"round {index}: training the detector")
        folders = sealed_folders(run.store, run.config, index)
        run.machines.train(
            run.store,
            DetectorJob(run.store.uri, run.config, index, checkpoint, folders, path),
        )
    return path


def _evaluate_detector(run: Run, executor: Executor, folder: str) -> None:
    rows = held_out(run)
    if not rows or run.store.exists(layout.recall_path(folder)):
        return
    recall = evaluate_detector(executor, rows, max_missing=run.config.execution.max_given_up)
    run.store.publish(layout.recall_path(folder), recall.model_dump_json(indent=1).encode())
    run.progress.say(
        f"detector: recall {recall.recall:.3f} at IoU 0.5 of {recall.num_objects} held-out objects"
    )


def sealed_folders(store: Store, config: EngineConfig, before: int) -> tuple[str, ...]:
    """Folders of the sealed rounds with an index below `before`."""
    folders = (config.round_folder(index) for index in range(before))
    return tuple(folder for folder in folders if store.exists(layout.manifest_path(folder)))


def _header(plan: RoundPlan, shard: int) -> ShardHeader:
    return ShardHeader(shard=shard, **plan.header.model_dump())
