import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from engine.context import WorkerContext
from engine.errors import EngineError, StorageError
from engine.evaluation import (
    DetectorRecall,
    EvaluationUnit,
    RecallUnit,
    evaluate,
    evaluate_detector,
    evaluate_source,
    held_out_rows,
)
from engine.executor import LocalExecutor, run_unit
from engine.images import WorkSize
from engine.layout import detector_path
from engine.progress import Progress
from engine.sources import CocoSource
from model.detector import DetectorConfig, ObjectDetector, save_detector
from runs import SmallRun
from stages.evaluation import ClickScores, evaluate_image
from stages.predictor import Predictor
from still_lifes import write_still_lifes
from tiny_runs import sa_engine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return SmallRun(tmp_path_factory.mktemp("evaluation"), num_images=6, held_out_fraction=0.5)


def no_step(amount: int = 1) -> None: ...


def test_an_image_is_scored_in_the_frame_it_is_worked_on(run: SmallRun) -> None:
    context = run.context(work_size=WorkSize(max_short_side=30))
    row = run.rows[0]
    scores = EvaluationUnit(row, max_masks=None).run(context)
    image = context.read_image(row)
    assert image.size_hw == (30, 45)
    predictor = Predictor(context.checkpoint.sam, image.size_hw, context.embedding(row, image))
    assert scores == evaluate_image(predictor, run.truth.masks_at(row, image.size_hw))
    assert scores.num_masks == 1


def test_means_are_over_the_masks_of_all_images(run: SmallRun) -> None:
    steps: list[int] = []
    executor = LocalExecutor(run.spec())

    def step(amount: int = 1) -> None:
        steps.append(amount)

    evaluation = evaluate(executor, run.rows, max_masks=None, step=step)
    assert len(steps) == 6
    context = run.context()
    scores = [EvaluationUnit(row, None).run(context) for row in run.rows]
    assert (evaluation.num_images, evaluation.num_masks) == (6, 6)
    assert evaluation.miou_1_click == pytest.approx(np.mean([s.iou_1_click for s in scores]))
    assert evaluation.miou_5_clicks == pytest.approx(np.mean([s.iou_5_clicks for s in scores]))


def test_only_the_largest_masks_are_scored_when_told_so(run: SmallRun) -> None:
    assert EvaluationUnit(run.rows[0], max_masks=0).run(run.context()).num_masks == 0


def test_units_travel_between_processes(run: SmallRun) -> None:
    for unit in (EvaluationUnit(run.rows[1], None), RecallUnit(run.rows[1])):
        assert pickle.loads(pickle.dumps(unit)) == unit


def test_nothing_to_evaluate_is_an_error_that_says_what_to_check(run: SmallRun) -> None:
    with pytest.raises(EngineError, match="nothing to evaluate: 0 images"):
        evaluate(LocalExecutor(run.spec()), [], max_masks=None, step=no_step)


def test_an_image_that_cannot_be_evaluated_is_named(run: SmallRun) -> None:
    unknown = run.rows[2].model_copy(update={"image_id": 77})
    with pytest.raises(EngineError, match=r"evaluation of .*2\.png failed: .*no ground truth"):
        evaluate(LocalExecutor(run.spec()), [unknown], max_masks=None, step=no_step)


def test_figures_do_without_a_few_images_that_have_gone(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=6)
    run.photo(run.rows[0]).unlink()

    def measure(max_missing: float) -> tuple[int, int]:
        with with_detector(run) as executor:
            clicks = evaluate(
                executor, run.rows, max_masks=None, step=no_step, max_missing=max_missing
            )
            recall = evaluate_detector(executor, run.rows, max_missing=max_missing)
        return clicks.num_images, recall.num_objects

    assert measure(max_missing=0.2) == (5, 5)
    with pytest.raises(EngineError, match=r"0\.png failed: .*no such file.*1 of 6 .*max_given_up"):
        measure(max_missing=0.1)


def test_a_full_disk_is_no_missing_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SmallRun(tmp_path, num_images=2)
    made = EvaluationUnit.run

    def failing(unit: EvaluationUnit, context: WorkerContext) -> ClickScores:
        if unit.row.image_id == run.rows[1].image_id:
            raise StorageError("no space left on device")
        return made(unit, context)

    monkeypatch.setattr(EvaluationUnit, "run", failing)
    with pytest.raises(StorageError, match="no space left"):
        evaluate(LocalExecutor(run.spec()), run.rows, max_masks=None, step=no_step, max_missing=1.0)


def test_no_recall_is_told_of_images_that_cannot_be_read(tmp_path: Path) -> None:
    run = SmallRun(tmp_path, num_images=2)
    for row in run.rows:
        run.photo(row).unlink()
    with with_detector(run) as executor, pytest.raises(EngineError, match="is its disk mounted"):
        evaluate_detector(executor, run.rows)


def test_held_out_images_are_chosen_by_content_and_a_smaller_choice_is_a_part(
    run: SmallRun,
) -> None:
    rows = held_out_rows(run.corpus, run.truth, None, None)
    assert [row.split for row in rows] == ["held_out"] * len(rows)
    assert 1 <= len(rows) < 6
    assert held_out_rows(run.corpus, run.truth, ["photos"], None) == rows
    assert held_out_rows(run.corpus, run.truth, [], None) == []
    first = held_out_rows(run.corpus, run.truth, None, 1)
    assert first == [min(rows, key=lambda row: row.sha256)]


@contextmanager
def with_detector(run: SmallRun) -> Iterator[LocalExecutor]:
    torch.manual_seed(0)
    detector = ObjectDetector(DetectorConfig(embed_dim=32, hidden_dim=16))
    path = detector_path("round-00")
    if not run.store.exists(path):
        save_detector(detector, run.store.root / path)
    yield LocalExecutor(run.spec(detector=path))


def test_recall_of_a_detector_is_between_none_and_all_of_the_objects(run: SmallRun) -> None:
    with with_detector(run) as executor:
        recall = evaluate_detector(executor, run.rows)
    assert recall.num_objects == 6
    assert 0 <= recall.num_found <= 6
    assert recall.recall == recall.num_found / 6


def test_recall_without_objects_is_nought(run: SmallRun) -> None:
    with with_detector(run) as executor:
        nothing = evaluate_detector(executor, [])
    assert nothing == DetectorRecall(num_objects=0, num_found=0, recall=0.0)


def test_a_unit_that_fails_does_not_take_the_process_with_it(run: SmallRun) -> None:
    outcome = run_unit(RecallUnit(run.rows[0]), run.context(detector="detectors/none"))
    assert "none" in outcome.error  # type: ignore[union-attr]


def test_a_source_is_evaluated_as_a_whole_without_a_run(run: SmallRun) -> None:
    progress = Progress(Console(quiet=True))
    checkpoint = str(run.store.root / run.checkpoint)
    evaluation = evaluate_source(run.source, checkpoint, progress, device="cpu")
    direct = evaluate(LocalExecutor(run.spec()), run.rows, max_masks=None, step=no_step)
    assert evaluation == direct


def test_the_shipped_checkpoint_is_evaluated_as_shipped_configs_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_still_lifes(tmp_path, 1)
    where = ["--images", str(tmp_path / "images")]
    where += ["--annotations", str(tmp_path / "instances.json"), "--min-area", "6000", "--json"]
    told = []
    for how in ([], ["--checkpoint", "sa-tiny", "--snap"], ["--no-snap"]):
        assert sa_engine(monkeypatch, "evaluate", *where, *how) == 0
        told.append(capsys.readouterr())
    unsaid, snapped, alone = (json.loads(output.out) for output in told)
    assert unsaid == snapped != alone
    assert "masks made of superpixels, as suits sa-tiny; else --no-snap" in told[0].err
    assert "superpixels" not in told[1].err + told[2].err


def test_objects_score_better_when_they_are_looked_at_twice_or_made_of_superpixels(
    tmp_path: Path,
) -> None:
    write_still_lifes(tmp_path, 2)
    source = CocoSource(
        name="still-lifes",
        images=str(tmp_path / "images"),
        annotations=str(tmp_path / "instances.json"),
        max_images=1,
    )
    plain, zooming, snapping = (
        evaluate_source(source, "sa-tiny", Progress(Console(quiet=True)), device="cpu", **how)
        for how in ({"snap": False}, {"snap": False, "zoom_in": True}, {})
    )
    assert plain.num_masks == zooming.num_masks == snapping.num_masks == 4
    assert zooming.miou_5_clicks > plain.miou_5_clicks
    assert snapping.miou_1_click_oracle > plain.miou_1_click_oracle + 0.02
