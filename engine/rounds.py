"""A run: for every round plan, work, seal, train, evaluate, promote.

Each step leaves a file that says it is done, and looks for it first. Going on after a kill is
therefore no mode of its own: the same calls find the finished steps finished.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from engine import layout
from engine.annotation import AnnotationUnit, answer_tasks, assemble_shard
from engine.config import EngineConfig, freeze_config, frozen_config, merged
from engine.context import WorkerContext, WorkerSpec, load_run_checkpoint
from engine.corpus import Corpus, CorpusRow, build_corpus
from engine.errors import ConfigError, CorruptFileError, EngineError
from engine.evaluation import evaluate, evaluate_detector, held_out_rows
from engine.executor import Executor, Failed, run_all
from engine.ground_truth import GroundTruth, build_ground_truth
from engine.machines import LocalMachines, Machines
from engine.manifest import (
    PlanHeader,
    RoundManifest,
    RoundPlan,
    freeze_plan,
    published_shards,
    seal,
)
from engine.production import Patience, make_shards
from engine.progress import Progress
from engine.shards import ShardHeader
from engine.store import LocalStore, Store
from engine.tasks import Lease, TaskQueue, sqlite_url
from engine.training import DetectorJob, RetrainingJob
from engine.worker import ShardUnit
from model.checkpoint import Lineage, save_checkpoint
from stages.evaluation import Evaluation
from stages.fully_automatic import FullyAutomaticConfig
from stages.records import Record, StageName
from stages.semi_automatic import SemiAutomaticConfig

log = logging.getLogger(__name__)

STAGED_FILES_LIVE_SECONDS = 3600.0
"""Older strays of killed writers are swept when a run starts."""
ANNOTATOR = "simulated"


class RoundOutcome(Record):
    """How a round ended."""

    checkpoint: str
    """Path of the checkpoint that the next round starts from."""
    trained: str | None = None
    """Path of the checkpoint that this round trained; None when it trained none."""
    evaluation: Evaluation | None
    """Of `checkpoint` on the held-out images; None when there are none with ground truth."""
    trained_evaluation: Evaluation | None = None
    """Of `trained`, promoted or not."""


@dataclass(frozen=True)
class Run:
    """A run under way."""

    store: Store
    config: EngineConfig
    corpus: Corpus
    truth: GroundTruth
    progress: Progress
    machines: Machines

    @contextmanager
    def workers(self, checkpoint: str, detector: str = "") -> Iterator[Executor]:
        execution = self.config.execution
        executor = self.machines.executor(
            WorkerSpec(
                store_uri=self.store.uri,
                checkpoint=checkpoint,
                detector=detector,
                limits=self.config.corpus.limits,
                work_size=self.config.work_size,
                keep_embeddings=self.config.retraining.training.freeze_image_encoder,
                device=execution.device,
                threads=execution.threads_per_worker,
            )
        )
        try:
            yield executor
        finally:
            executor.close()


def run_rounds(
    store: Store,
    config: EngineConfig,
    progress: Progress,
    machines: Machines,
    *,
    stage: StageName | None = None,
) -> list[tuple[int, RoundOutcome]]:
    """Run, or go on with, every round of a config, or those of one stage.

    Returns:
        Index and outcome of each round of the run that is finished, earlier ones included.

    Raises:
        EngineError: in one line what is wrong and what to do; what is published stays.
    """
    freeze_config(store, config)
    if swept := store.sweep(STAGED_FILES_LIVE_SECONDS):
        log.info("swept %d files that killed writers left", swept)
    run = _open_run(store, config, progress, machines)
    current = _start(run)
    outcomes: list[tuple[int, RoundOutcome]] = []
    for index, round_config in enumerate(config.rounds):
        outcome = load_outcome(store, config.round_folder(index))
        if outcome is None and stage in (None, round_config.stage):
            outcome = _run_round(run, index, current)
        if outcome is not None:
            outcomes.append((index, outcome))
            current = outcome
    return outcomes


def train_once(
    store: Store, name: str, *, checkpoint: str | None = None, steps: int | None = None
) -> str:
    """One retraining over the sealed rounds of a run, in this process; returns its path.

    Args:
        name: of the new checkpoint.
        checkpoint: where to start; None: from the run's last one.
        steps: None: as the run's config says.
    """
    config = frozen_config(store)
    if steps is not None:
        changed = {"retraining": {"training": {"steps": steps}}}
        config = EngineConfig.model_validate(merged(config.model_dump(mode="json"), changed))
    folders = sealed_folders(store, config, len(config.rounds))
    if not folders:
        raise EngineError(f"{store.uri} has no sealed round to train on; run it first")
    finished = [load_outcome(store, folder) for folder in folders]
    last = next((o.checkpoint for o in reversed(finished) if o is not None), config.checkpoint)
    target = layout.checkpoint_path(name)
    if store.exists(target):
        raise EngineError(f"{store.uri}/{target} exists; choose another --name")
    index = len(folders) - 1
    job = RetrainingJob(store.uri, config, index, checkpoint or last, folders, target)
    LocalMachines().train(store, job)
    return target


def load_outcome(store: Store, folder: str) -> RoundOutcome | None:
    """None for a round that is not finished."""
    path = layout.outcome_path(folder)
    return _load_outcome(store, path) if store.exists(path) else None


def load_start(store: Store) -> RoundOutcome | None:
    return _load_outcome(store, layout.START) if store.exists(layout.START) else None


def choose_images(config: EngineConfig, corpus: Corpus, index: int) -> NDArray[np.int64]:
    """Ids of the images of a round, ascending: the next of its source by content hash.

    No two rounds share an image, and none takes a held-out one.
    """
    mine = config.rounds[index]
    ids = corpus.select(sources=[mine.source], split="train")
    hashes = corpus.columns("sha256")["sha256"].take(ids).to_numpy(zero_copy_only=False)
    ids = ids[np.argsort(hashes.astype("S64"), kind="stable")]
    for earlier in config.rounds[:index]:
        if earlier.source == mine.source:
            ids = ids[len(ids) if earlier.images is None else earlier.images :]
    return np.sort(ids[: mine.images])


def _open_run(
    store: Store,
    config: EngineConfig,
    progress: Progress,
    machines: Machines,
) -> Run:
    progress.say(f"run {config.name}: {store.uri}")
    corpus = build_corpus(
        store, config.sources, config.corpus, run=partial(_run_parts, store, machines, progress)
    )
    truth = build_ground_truth(store, config.sources, corpus)
    progress.say(
        f"corpus: {len(corpus)} images, {len(corpus.select(split='held_out'))} held out, "
        f"{len(corpus) - len(corpus.select())} unusable, {len(truth.image_ids)} with ground truth"
    )
    return Run(store, config, corpus, truth, progress, machines)


@dataclass(frozen=True)
class ScanUnit:
    """One part of the corpus."""

    scan: Callable[[int], int]
    part: int

    def run(self, context: WorkerContext) -> int:
        return self.scan(self.part)


def _run_parts(
    store: Store,
    machines: Machines,
    progress: Progress,
    scan: Callable[[int], int],
    parts: Iterable[int],
) -> Iterator[int]:
    """Scan parts of the corpus on all workers; a single one is not worth starting them."""
    waiting = [ScanUnit(scan, part) for part in parts]
    if len(waiting) <= 1:
        yield from (unit.scan(unit.part) for unit in waiting)
        return
    executor = machines.executor(WorkerSpec(store.uri, checkpoint=""))
    try:
        with progress.of("scanning images", len(waiting)) as step:
            for outcome in run_all(executor, waiting):
                if isinstance(outcome, Failed):
                    raise EngineError(
                        f"part {outcome.unit.part} of the corpus cannot be scanned: {outcome.error}"
                    )
                step()
                yield outcome.result
    finally:
        executor.close()


def _start(run: Run) -> RoundOutcome:
    """Copy the first checkpoint into the run, so that every machine finds it, and evaluate it."""
    existing = load_start(run.store)
    if existing is not None:
        return existing
    given = load_run_checkpoint(run.store, run.config.checkpoint)
    path = layout.checkpoint_path(given.name)
    if not run.store.exists(path):
        with TemporaryDirectory() as folder:
            copy = Path(folder) / given.name
            save_checkpoint(given.sam, copy, given.lineage or Lineage())
            run.store.publish_folder(path, copy)
    outcome = RoundOutcome(checkpoint=path, evaluation=_evaluate(run, path))
    run.store.publish(layout.START, outcome.model_dump_json(indent=1).encode())
    return outcome


def _run_round(run: Run, index: int, current: RoundOutcome) -> RoundOutcome:
    config, folder = run.config, run.config.round_folder(index)
    mine = config.rounds[index]
    started = time.monotonic()
    plan = _plan(run, index, current.checkpoint)
    run.progress.say(f"round {index}: {mine.stage}, {len(plan.image_ids)} images of {mine.source}")
    if len(published_shards(run.store, layout.shards_folder(folder))) < plan.num_shards:
        if mine.stage is StageName.FULLY_AUTOMATIC:
            _annotate_automatically(run, plan, folder, current.checkpoint)
        else:
            _annotate_with_tasks(run, plan, folder, current.checkpoint)
    manifest = seal(run.store, folder, plan)
    outcome = _retrain(run, index, current) if mine.retrain else _unchanged(current)
    run.store.publish(layout.outcome_path(folder), outcome.model_dump_json(indent=1).encode())
    run.progress.say(_summary(index, manifest, outcome, time.monotonic() - started))
    return outcome


def _unchanged(current: RoundOutcome) -> RoundOutcome:
    """The outcome of a round that trains nothing."""
    return RoundOutcome(checkpoint=current.checkpoint, evaluation=current.evaluation)


def _plan(run: Run, index: int, checkpoint: str) -> RoundPlan:
    mine = run.config.rounds[index]
    image_ids = choose_images(run.config, run.corpus, index)
    if len(image_ids) == 0:
        raise ConfigError(
            f"round {index} ({mine.stage}) has no images left: source {mine.source} has "
            f"{len(run.corpus.select(sources=[mine.source], split='train'))} usable ones that are "
            "not held out, and earlier rounds take them all; add images or shorten those rounds"
        )
    unknown = len(np.setdiff1d(image_ids, run.truth.image_ids))
    if unknown and mine.stage is not StageName.FULLY_AUTOMATIC:
        raise ConfigError(
            f"round {index} ({mine.stage}) has a simulated annotator, who needs ground truth, but "
            f"{unknown} of its {len(image_ids)} images have none; name a COCO-style source"
        )
    plan = RoundPlan(
        header=PlanHeader(
            round=index,
            stage=mine.stage,
            config_sha256=run.config.sha256,
            checkpoint=load_run_checkpoint(run.store, checkpoint).label,
        ),
        image_ids=image_ids,
        images_per_shard=run.config.images_per_shard,
    )
    return freeze_plan(run.store, run.config.round_folder(index), plan)


def _annotate_automatically(run: Run, plan: RoundPlan, folder: str, checkpoint: str) -> None:
    with run.workers(checkpoint) as executor:
        _make_shards(run, executor, plan, layout.shards_folder(folder), run.config.fully_automatic)


def _annotate_with_tasks(run: Run, plan: RoundPlan, folder: str, checkpoint: str) -> None:
    proposals = None
    if plan.header.stage is StageName.SEMI_AUTOMATIC:
        proposals = layout.proposals_folder(folder)
        detector = _train_detector(run, plan.header.round, checkpoint)
        with run.workers(checkpoint, detector) as executor:
            _evaluate_detector(run, executor, folder)
            _make_shards(run, executor, plan, proposals, run.config.semi_automatic)
    with _open_queue(run) as queue:
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
    execution = run.config.execution
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
    patience = Patience.of(
        len(plan.image_ids),
        max_attempts=execution.max_attempts,
        share=execution.max_given_up,
    )
    what = f"{shards.rpartition('/')[2]} of round {plan.header.round}"
    with run.progress.of(what, plan.num_shards, len(existing)) as step:
        make_shards(executor, run.store, units, patience, lambda shard: step())


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
            queue.results(plan.header.round, image_ids),
            shards=shards,
            proposals=proposals,
            work_size=run.config.work_size,
        )


@contextmanager
def _open_queue(run: Run) -> Iterator[TaskQueue]:
    queue = open_queue(run.store, run.config)
    try:
        yield queue
    finally:
        queue.close()


def open_queue(store: Store, config: EngineConfig) -> TaskQueue:
    execution = config.execution
    if execution.tasks_url is not None:
        url = execution.tasks_url
    elif isinstance(store, LocalStore):
        url = sqlite_url(store.root / layout.TASKS)
    else:
        raise ConfigError(
            f"a run in {store.uri} needs execution.tasks_url for its annotation queue: SQLite "
            "lives on a disk; give a PostgreSQL URL, or sqlite:////path on the head's disk"
        )
    return TaskQueue(
        url,
        clock=time.time,
        lease_seconds=execution.lease_seconds,
        max_attempts=execution.max_attempts,
    )


def _train_detector(run: Run, index: int, checkpoint: str) -> str:
    """The detector of a semi-automatic round, trained on all masks so far."""
    path = layout.detector_path(f"round-{index:02d}")
    if not run.store.exists(path):
        run.progress.say(f"round {index}: training the detector")
        folders = sealed_folders(run.store, run.config, index)
        run.machines.train(
            run.store,
            DetectorJob(run.store.uri, run.config, index, checkpoint, folders, path),
        )
    return path


def _evaluate_detector(run: Run, executor: Executor, folder: str) -> None:
    rows = _held_out(run)
    if not rows or run.store.exists(layout.recall_path(folder)):
        return
    recall = evaluate_detector(executor, rows)
    run.store.publish(layout.recall_path(folder), recall.model_dump_json(indent=1).encode())
    run.progress.say(
        f"detector: recall {recall.recall:.3f} at IoU 0.5 of {recall.num_objects} held-out objects"
    )


def _retrain(run: Run, index: int, parent: RoundOutcome) -> RoundOutcome:
    path = layout.checkpoint_path(f"round-{index:02d}")
    if not run.store.exists(path):
        run.progress.say(f"round {index}: training from {parent.checkpoint}")
        folders = sealed_folders(run.store, run.config, index + 1)
        run.machines.train(
            run.store,
            RetrainingJob(run.store.uri, run.config, index, parent.checkpoint, folders, path),
        )
    evaluation = _evaluate(run, path)
    promoted = run.config.rounds[index].promote == "always" or is_better(
        evaluation, parent.evaluation
    )
    return RoundOutcome(
        checkpoint=path if promoted else parent.checkpoint,
        trained=path,
        evaluation=evaluation if promoted else parent.evaluation,
        trained_evaluation=evaluation,
    )


def is_better(candidate: Evaluation | None, parent: Evaluation | None) -> bool:
    """By held-out mIoU after one click; without figures nothing is better."""
    if candidate is None or parent is None:
        return False
    return candidate.miou_1_click > parent.miou_1_click


def sealed_folders(store: Store, config: EngineConfig, before: int) -> tuple[str, ...]:
    """Folders of the sealed rounds with an index below `before`."""
    folders = (config.round_folder(index) for index in range(before))
    return tuple(folder for folder in folders if store.exists(layout.manifest_path(folder)))


def _evaluate(run: Run, checkpoint: str) -> Evaluation | None:
    rows = _held_out(run)
    if not rows:
        return None
    name = checkpoint.rpartition("/")[2]
    with (
        run.workers(checkpoint) as executor,
        run.progress.of(f"evaluating {name}", len(rows)) as step,
    ):
        return evaluate(
            executor, rows, max_masks=run.config.evaluation.max_masks_per_image, step=step
        )


def _held_out(run: Run) -> list[CorpusRow]:
    wanted = run.config.evaluation
    return held_out_rows(run.corpus, run.truth, wanted.sources, wanted.max_images)


def _header(plan: RoundPlan, shard: int) -> ShardHeader:
    return ShardHeader(
        stage=plan.header.stage,
        round=plan.header.round,
        shard=shard,
        checkpoint=plan.header.checkpoint,
        config_sha256=plan.header.config_sha256,
    )


def _load_outcome(store: Store, path: str) -> RoundOutcome:
    try:
        return RoundOutcome.model_validate_json(store.read(path))
    except ValidationError as error:
        raise CorruptFileError(f"{path} is not the outcome of a round: {error}") from error


def _summary(index: int, manifest: RoundManifest, outcome: RoundOutcome, seconds: float) -> str:
    score = "none" if outcome.evaluation is None else f"{outcome.evaluation.miou_1_click:.3f}"
    masks = sum(shard.num_masks for shard in manifest.shards)
    return (
        f"round={index} stage={manifest.header.stage} shards={len(manifest.shards)} masks={masks} "
        f"miou_1_click={score} checkpoint={outcome.checkpoint} seconds={seconds:.0f}"
    )
