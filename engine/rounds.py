"""All rounds of a run: for each plan, work, seal, train, evaluate, promote.

Each step leaves a file that says it is done, and looks for it first. Going on after a kill is
therefore no mode of its own: the same calls find the finished steps finished.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from engine import layout
from engine.config import (
    EngineConfig,
    changed,
    follow_execution,
    freeze_config,
    frozen_config,
)
from engine.context import load_run_checkpoint
from engine.corpus import Corpus
from engine.database import public_url
from engine.decoders import decoder_faults, ensure_decoder
from engine.errors import ConfigError, CorruptFileError, EngineError, fault
from engine.leftovers import remove_leftovers
from engine.machines import LocalMachines, Machines
from engine.manifest import (
    PlanHeader,
    RoundManifest,
    RoundPlan,
    broken_files,
    freeze_plan,
    load_plan,
    published_shards,
    seal,
)
from engine.progress import Progress
from engine.run import Run, evaluate_checkpoint, held_out, open_queue, open_run
from engine.stage_work import annotate_automatically, annotate_with_tasks, sealed_folders
from engine.store import STAGED_LIVE_SECONDS, Store
from engine.training import RetrainingJob
from model.checkpoint import Lineage, save_checkpoint
from model.click_scorer import click_scorer_sha256
from model.edge_detector import edge_detector_sha256
from model.mask_scorer import mask_scorer_sha256
from stages.evaluation import Evaluation
from stages.records import Record, StageName

log = logging.getLogger(__name__)


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

    @property
    def promoted(self) -> str | None:
        """Path of the checkpoint that this round promoted; None when it promoted none."""
        return self.trained if self.trained == self.checkpoint else None


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
    _check_queue(store, config)
    follow_execution(store, config)
    if swept := store.sweep(STAGED_LIVE_SECONDS):
        log.info("swept %d files that killed writers left", swept)
    run = open_run(store, config, progress, machines)
    _check_images(run)
    _check_promotion(run)
    current = _start(run)
    by_checkpoint = {current.checkpoint: current}
    outcomes: list[tuple[int, RoundOutcome]] = []
    for index, round_config in enumerate(config.rounds):
        outcome = load_outcome(store, config.round_folder(index))
        if outcome is None and stage in (None, round_config.stage):
            outcome = _run_round(run, index, _parent(run, index, current, by_checkpoint))
        if outcome is not None:
            if outcome.promoted is not None:  # by an earlier call too, which may have been killed
                ensure_decoder(store, outcome.promoted)
            outcomes.append((index, outcome))
            by_checkpoint[outcome.checkpoint] = outcome
            if round_config.retrain:  # one that does not may have run long before, by --stage
                current = outcome
    return outcomes


def _check_queue(store: Store, config: EngineConfig) -> None:
    """A queue that is needed is opened first of all, not after hours of other work. One that has
    moved may be another run's."""
    before, now = frozen_config(store).execution.tasks_url, config.execution.tasks_url
    has_tasks = any(
        mine.stage is not StageName.FULLY_AUTOMATIC
        and load_outcome(store, config.round_folder(index)) is None
        for index, mine in enumerate(config.rounds)
    )
    if has_tasks or now not in (None, before):
        open_queue(store, config).close()
    if before == now:
        return
    log.warning(
        "execution.tasks_url was %s, is now %s: of an unfinished round only those answers count "
        "that have moved with it",
        *(public_url(url) if url else "the run's own SQLite" for url in (before, now)),
    )


def _check_images(run: Run) -> None:
    """Every round has images left by those before it: known now, not after hours of the others."""
    left: dict[str, int] = {}
    for index, mine in enumerate(run.config.rounds):
        usable = len(run.corpus.select(sources=[mine.source], split="train"))
        here = left.get(mine.source, usable)
        if here == 0:
            raise ConfigError(
                f"round {index} ({mine.stage}) has no images left: source {mine.source} has "
                f"{usable} usable ones that are not held out, and earlier rounds take them all; "
                "add images or shorten those rounds"
            )
        left[mine.source] = 0 if mine.images is None else max(0, here - mine.images)


def _check_promotion(run: Run) -> None:
    compares = any(r.retrain and r.promote == "if_better" for r in run.config.rounds)
    if compares and not held_out(run):
        raise ConfigError(
            "promote: if_better compares checkpoints on held-out images with ground truth, and "
            "there are none: raise corpus.held_out_fraction, or promote: always"
        )


def _start(run: Run) -> RoundOutcome:
    """Copy the first checkpoint into the run, so that every machine finds it, and evaluate it."""
    existing = load_start(run.store)
    if existing is not None:
        return existing
    given = load_run_checkpoint(run.store, run.config.checkpoint)
    # A checkpoint of another run's round must not pass for what a round of this one has trained.
    name = f"start-{given.name}" if layout.is_round_checkpoint(given.name) else given.name
    path = layout.checkpoint_path(name)
    if not run.store.has_folder(path):
        with TemporaryDirectory() as folder:
            copy = Path(folder) / name
            save_checkpoint(given.sam, copy, given.lineage or Lineage())
            run.store.publish_folder(path, copy)
    outcome = RoundOutcome(checkpoint=path, evaluation=evaluate_checkpoint(run, path))
    return _publish_outcome(run, layout.START, outcome)


def _parent(
    run: Run, index: int, current: RoundOutcome, by_checkpoint: dict[str, RoundOutcome]
) -> RoundOutcome:
    """What a round starts from; one that was begun before, by --stage, keeps its checkpoint."""
    folder = run.config.round_folder(index)
    if not run.store.exists(layout.plan_path(folder)):
        return current
    name = load_plan(run.store, folder).header.checkpoint.partition("@")[0]
    return by_checkpoint.get(layout.checkpoint_path(name), current)


def _run_round(run: Run, index: int, current: RoundOutcome) -> RoundOutcome:
    config, folder = run.config, run.config.round_folder(index)
    mine = config.rounds[index]
    started = time.monotonic()
    plan = _plan(run, index, current.checkpoint)
    run.progress.say(f"round {index}: {mine.stage}, {len(plan.image_ids)} images of {mine.source}")
    if len(published_shards(run.store, layout.shards_folder(folder))) < plan.num_shards:
        if mine.stage is StageName.FULLY_AUTOMATIC:
            annotate_automatically(run, plan, folder, current.checkpoint)
        else:
            annotate_with_tasks(run, plan, folder, current.checkpoint)
    manifest = seal(run.store, folder, plan)
    outcome = _retrain(run, index, current) if mine.retrain else _unchanged(current)
    outcome = _publish_outcome(run, layout.outcome_path(folder), outcome)
    for gone in remove_leftovers(run.store, outcome.checkpoint):
        log.info("removed %s: nothing reads it any more", gone)
    run.progress.say(_summary(index, manifest, outcome, time.monotonic() - started))
    return outcome


def _plan(run: Run, index: int, checkpoint: str) -> RoundPlan:
    mine = run.config.rounds[index]
    image_ids = choose_images(run.config, run.corpus, index)
    unknown = len(np.setdiff1d(image_ids, run.truth.image_ids))
    simulated = mine.stage is not StageName.FULLY_AUTOMATIC and mine.annotator == "simulated"
    if unknown and simulated:
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
            edge_detector=edge_detector_sha256() if run.config.snaps(mine.stage) else None,
            mask_scorer=mask_scorer_sha256() if run.config.rescores(mine.stage) else None,
            click_scorer=click_scorer_sha256() if run.config.snaps_clicks(mine.stage) else None,
        ),
        image_ids=image_ids,
        images_per_shard=run.config.images_per_shard,
    )
    return freeze_plan(run.store, run.config.round_folder(index), plan)


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


def _retrain(run: Run, index: int, parent: RoundOutcome) -> RoundOutcome:
    path = layout.checkpoint_path(layout.round_checkpoint(index))
    if not run.store.has_folder(path):
        run.progress.say(f"round {index}: training from {parent.checkpoint}")
        folders = sealed_folders(run.store, run.config, index + 1)
        run.machines.train(
            run.store,
            RetrainingJob(run.store.uri, run.config, index, parent.checkpoint, folders, path),
        )
    evaluation = evaluate_checkpoint(run, path)
    if parent.evaluation and evaluation and not _are_of_the_same(evaluation, parent.evaluation):
        log.warning("round %d: images went or came back; its parent is measured anew", index)
        again = evaluate_checkpoint(run, parent.checkpoint)
        parent = parent.model_copy(update={"evaluation": again})
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
    """By held-out mIoU after one click, if what is won there is not lost by the third or the fifth.

    Without figures of the same masks nothing is better.
    """
    if candidate is None or parent is None or not _are_of_the_same(candidate, parent):
        return False
    first = candidate.miou_1_click > parent.miou_1_click
    return first and _over_clicks(candidate) > _over_clicks(parent)


def _over_clicks(evaluation: Evaluation) -> float:
    clicks = (evaluation.miou_1_click, evaluation.miou_3_clicks, evaluation.miou_5_clicks)
    return sum(clicks) / len(clicks)


def _are_of_the_same(one: Evaluation, other: Evaluation) -> bool:
    return (one.num_images, one.num_masks) == (other.num_images, other.num_masks)


def _unchanged(current: RoundOutcome) -> RoundOutcome:
    """The outcome of a round that trains nothing."""
    return RoundOutcome(checkpoint=current.checkpoint, evaluation=current.evaluation)


def train_once(
    store: Store, name: str, *, checkpoint: str | None = None, steps: int | None = None
) -> str:
    """One retraining over the sealed rounds of a run, in this process; returns its path.

    Args:
        name: of the new checkpoint.
        checkpoint: where to start; None: from the run's last one.
        steps: None: as the run's config says.
    """
    if layout.is_round_checkpoint(name):
        raise ConfigError(f"--name {name} is for what the run's own rounds train; choose another")
    config = frozen_config(store)
    if steps is not None:
        config = changed(config, {"retraining": {"training": {"steps": steps}}})
    folders = sealed_folders(store, config, len(config.rounds))
    if not folders:
        raise EngineError(f"{store.uri} has no sealed round to train on; run it first")
    finished = [load_outcome(store, folder) for folder in folders]
    last = next((o.checkpoint for o in reversed(finished) if o is not None), config.checkpoint)
    target = layout.checkpoint_path(name)
    if store.has_folder(target):
        raise EngineError(f"{store.uri}/{target} exists; choose another --name")
    index = max(i for i in range(len(config.rounds)) if config.round_folder(i) in folders)
    job = RetrainingJob(store.uri, config, index, checkpoint or last, folders, target)
    LocalMachines().train(store, job)
    return target


def _publish_outcome(run: Run, path: str, outcome: RoundOutcome) -> RoundOutcome:
    """The outcome that counts: another driver of the run may have published its own before."""
    run.store.publish(path, outcome.model_dump_json(indent=1).encode())
    return _load_outcome(run.store, path)


def load_outcome(store: Store, folder: str) -> RoundOutcome | None:
    """None for a round that is not finished."""
    path = layout.outcome_path(folder)
    return _load_outcome(store, path) if store.exists(path) else None


def promoted_checkpoints(store: Store, config: EngineConfig) -> list[str]:
    """Paths of the checkpoints that finished rounds promoted."""
    folders = (config.round_folder(index) for index in range(len(config.rounds)))
    outcomes = (load_outcome(store, folder) for folder in folders)
    return [o.promoted for o in outcomes if o is not None and o.promoted is not None]


def run_faults(store: Store) -> Iterator[str]:
    """One line for each thing in a run that is not what it should be; what cannot be read is one,
    and ends nothing."""
    config = frozen_config(store)
    for index in range(len(config.rounds)):
        yield from broken_files(store, config.round_folder(index))
    try:
        promoted = promoted_checkpoints(store, config)
    except (EngineError, OSError) as error:
        yield fault(layout.ROUNDS, error)
    else:
        yield from decoder_faults(store, promoted)


def load_start(store: Store) -> RoundOutcome | None:
    return _load_outcome(store, layout.START) if store.exists(layout.START) else None


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
