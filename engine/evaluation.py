"""Evaluation as units of work: images anywhere, sums added up here."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus, CorpusConfig, CorpusRow, build_corpus
from engine.errors import EngineError, StorageError
from engine.executor import Executor, Failed, LocalExecutor, run_all
from engine.ground_truth import GroundTruth, build_ground_truth
from engine.progress import Progress, Step
from engine.sources import CocoSource
from engine.store import open_store
from engine.suited import suited_snap
from stages.evaluation import ClickScores, Evaluation, box_recall, evaluate_image
from stages.filters import mask_box
from stages.predictor import Predictor
from stages.records import Record
from stages.semi_automatic import detect
from stages.zoom_in import predictor_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationUnit:
    row: CorpusRow
    max_masks: int | None
    """The largest masks of the image; None: all."""
    zoom_in: bool = False
    """Small objects are looked at twice."""
    snap: bool = False
    """Masks are made of superpixels."""

    def run(self, context: WorkerContext) -> ClickScores:
        image = context.read_image(self.row)
        truths = context.ground_truth.masks_at(self.row, image.size_hw)
        truths.sort(key=lambda mask: -int(mask.sum()))
        embedding = context.embedding(self.row, image)
        predictor = predictor_of(
            context.checkpoint.sam, image.pixels, embedding, zoom_in=self.zoom_in, snap=self.snap
        )
        return evaluate_image(predictor, truths[: self.max_masks])


def evaluate(
    executor: Executor,
    rows: Sequence[CorpusRow],
    *,
    max_masks: int | None,
    step: Step,
    zoom_in: bool = False,
    snap: bool = False,
    max_missing: float = 0.0,
) -> Evaluation:
    """Means over all masks of these images, by clicks.

    Args:
        max_missing: share of the images that the figures may do without, where they fail.

    Raises:
        EngineError: more images failed than that, or there is nothing to evaluate.
    """
    scores = ClickScores()
    units = [EvaluationUnit(row, max_masks, zoom_in, snap) for row in rows]
    for found in _results(executor, units, max_missing, step):
        scores += found
    try:
        return scores.means()
    except ValueError as error:
        raise EngineError(str(error)) from error


class DetectorRecall(Record):
    """How many of the held-out objects some proposal meets at a box IoU of 0.5."""

    num_objects: int
    num_found: int
    recall: float


@dataclass(frozen=True)
class RecallUnit:
    row: CorpusRow

    def run(self, context: WorkerContext) -> tuple[int, int]:
        image = context.read_image(self.row)
        truths = context.ground_truth.masks_at(self.row, image.size_hw)
        predictor = Predictor(
            context.checkpoint.sam, image.size_hw, context.embedding(self.row, image)
        )
        boxes, _ = detect(context.detector, predictor)
        corners = np.asarray([mask_box(truth) for truth in truths], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += 1  # the detector's boxes end behind their last pixel
        return box_recall(boxes, corners)


def evaluate_detector(
    executor: Executor, rows: Sequence[CorpusRow], *, max_missing: float = 0.0
) -> DetectorRecall:
    """`max_missing` and errors: see `evaluate`."""
    found = total = 0
    for met, objects in _results(executor, [RecallUnit(row) for row in rows], max_missing):
        found, total = found + met, total + objects
    return DetectorRecall(num_objects=total, num_found=found, recall=found / max(total, 1))


def _results(
    executor: Executor,
    units: Sequence[EvaluationUnit | RecallUnit],
    max_missing: float,
    step: Step | None = None,
) -> Iterator[Any]:
    """What the units gave, without those that failed: figures over few of them would compare with
    no earlier ones, so of these there may not be many."""
    missing = 0
    for outcome in run_all(executor, units):
        if step is not None:
            step()
        if not isinstance(outcome, Failed):
            yield outcome.result
            continue
        if outcome.storage:
            raise StorageError(outcome.error)
        missing += 1
        log.warning("evaluation of %s failed: %s", outcome.unit.row.uri, outcome.error)
        if missing > max_missing * len(units):
            raise EngineError(
                f"evaluation of {outcome.unit.row.uri} failed: {outcome.error}; {missing} of "
                f"{len(units)} images are missing so far, at most {max_missing:.0%} may be (in a "
                "run: execution.max_given_up)"
            )


def evaluate_source(
    source: CocoSource,
    checkpoint: str,
    progress: Progress,
    *,
    device: str,
    zoom_in: bool = False,
    snap: bool | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on all images of a COCO-style source, in this process.

    Args:
        zoom_in: look at small objects twice.
        snap: make masks of superpixels; None: where that suits the checkpoint.
    """
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        store = open_store(folder)
        corpus = build_corpus(store, [source], CorpusConfig())
        truth = build_ground_truth(store, [source], corpus)
        rows = corpus.rows(np.intersect1d(corpus.select(), truth.image_ids).tolist())
        executor = LocalExecutor(WorkerSpec(store.uri, checkpoint, device=device))
        if snap is None:
            snap = suited_snap(executor.context.checkpoint)
            if snap:
                progress.say(f"masks made of superpixels, as suits {checkpoint}; else --no-snap")
        with progress.of("evaluating", len(rows)) as step:
            return evaluate(executor, rows, max_masks=None, step=step, zoom_in=zoom_in, snap=snap)


def held_out_rows(
    corpus: Corpus, truth: GroundTruth, sources: Sequence[str] | None, max_images: int | None
) -> list[CorpusRow]:
    """The images to evaluate on: held out, with ground truth, the first by content hash."""
    held_out = corpus.select(sources=sources, split="held_out")
    ids = np.intersect1d(held_out, truth.image_ids)
    order = np.argsort(corpus.columns("sha256")["sha256"].to_numpy()[ids], kind="stable")
    return corpus.rows(sorted(ids[order][:max_images].tolist()))
