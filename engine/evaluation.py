"""Evaluation as units of work: images anywhere, sums added up here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.context import WorkerContext
from engine.corpus import Corpus, CorpusRow
from engine.errors import EngineError, UnreadableImageError
from engine.executor import Executor, Failed
from engine.ground_truth import GroundTruth
from engine.production import POLL_SECONDS
from engine.progress import Step
from stages.evaluation import ClickScores, Evaluation, evaluate_image
from stages.predictor import Predictor
from stages.rle import decode_rle


@dataclass(frozen=True)
class EvaluationUnit:
    row: CorpusRow
    max_masks: int | None
    """The largest masks of the image; None: all."""

    def run(self, context: WorkerContext) -> ClickScores:
        try:
            image = context.read_image(self.row)
        except UnreadableImageError:
            return ClickScores()
        rles = GroundTruth(context.store).masks(self.row.image_id, image.size_hw)
        truths = sorted((decode_rle(rle) for rle in rles), key=lambda mask: -int(mask.sum()))
        predictor = Predictor(
            context.checkpoint.sam, image.size_hw, context.embedding(self.row, image)
        )
        return evaluate_image(predictor, truths[: self.max_masks])


def evaluate(
    executor: Executor, rows: Sequence[CorpusRow], *, max_masks: int | None, step: Step
) -> Evaluation:
    """Means over all masks of these images, by clicks.

    Raises:
        EngineError: an image failed, or there is nothing to evaluate.
    """
    waiting = [EvaluationUnit(row, max_masks) for row in reversed(rows)]
    scores, in_flight = ClickScores(), 0
    while waiting or in_flight:
        while waiting and executor.has_room():
            executor.submit(waiting.pop())
            in_flight += 1
        for outcome in executor.wait(POLL_SECONDS):
            in_flight -= 1
            if isinstance(outcome, Failed):
                raise EngineError(f"evaluation of {outcome.unit.row.uri} failed: {outcome.error}")
            scores += outcome.result
            step()
    try:
        return scores.means()
    except ValueError as error:
        raise EngineError(str(error)) from error


def held_out_rows(
    corpus: Corpus, truth: GroundTruth, sources: Sequence[str] | None, max_images: int | None
) -> list[CorpusRow]:
    """The images to evaluate on: held out, with ground truth, the first by content hash."""
    held_out = corpus.select(sources=sources, split="held_out")
    ids = np.intersect1d(held_out, truth.image_ids)
    order = np.argsort(corpus.columns("sha256")["sha256"].to_numpy()[ids], kind="stable")
    return corpus.rows(sorted(ids[order][:max_images].tolist()))
