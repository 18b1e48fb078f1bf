"""Rounds from plan to promotion, and what happens when a run is run again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import cli, layout
from engine.config import frozen_config
from engine.corpus import Corpus
from engine.errors import ConfigError, EngineError, StorageError
from engine.rounds import choose_images, is_better, load_start, train_once
from model.checkpoint import encoder_sha256, load_checkpoint
from stages.evaluation import Evaluation
from stages.records import StageName
from tiny_runs import AUTOMATIC, MANUAL, SEMI, TinyRun, sa_engine

UNTRAINED = {**MANUAL, "retrain": False}


def test_every_stage_has_one_row_an_image_and_says_which_checkpoint_answered(
    undisturbed: TinyRun,
) -> None:
    run = undisturbed
    run.assert_whole()
    labels = [_label(run, name) for name in ("tiny", "round-00", "round-00")]
    for index, label in enumerate(labels):
        assert {m.checkpoint for record in run.records(index) for m in record.masks} == {label}
    lineage = load_checkpoint(run.out / "checkpoints/round-00").lineage
    assert lineage is not None
    assert (lineage.parent, lineage.round, lineage.stage) == (labels[0], 0, "assisted_manual")


def test_a_finished_run_does_nothing_when_it_is_run_again(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, [MANUAL], num_images=2, held_out=1)
    first = run.run()
    before = _files(run)
    assert run.run() == first
    assert _files(run) == before


def test_a_finished_round_leaves_no_states_and_no_embeddings_of_another_encoder(
    tmp_path: Path,
) -> None:
    run = TinyRun(tmp_path, [MANUAL], num_images=2, held_out=1)
    run.store.publish(layout.embedding_path("0" * 64, "f" * 64), b"of an encoder long gone")
    unfinished = layout.training_folder("checkpoints/another", "0" * 64)
    run.store.publish(f"{unfinished}/state.pt", b"of a training that goes on elsewhere")
    run.run()
    current = layout.embeddings_folder(encoder_sha256(load_checkpoint(tmp_path / "tiny").sam))
    assert run.store.folders(layout.EMBEDDINGS) == [current]
    assert run.store.folders(layout.TRAINING) == [unfinished]


def test_rounds_take_different_images_and_none_that_is_held_out(undisturbed: TinyRun) -> None:
    run, corpus = undisturbed, Corpus(undisturbed.store)
    chosen = [choose_images(run.config, corpus, index).tolist() for index in range(3)]
    assert [len(ids) for ids in chosen] == [4, 2, 2]
    assert sorted(np.concatenate(chosen)) == corpus.select(split="train").tolist()


def test_a_changed_config_is_refused_with_both_values_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    local = {"execution": {"executor": "local"}}
    run = TinyRun(tmp_path, [UNTRAINED], num_images=2, changes=local)
    command = ("run", run.write_config(), "--out", str(run.out))
    run.run()
    before = _files(run)
    changes = {"seed": 7, "simulated_annotator": {"max_clicks": 3}}
    TinyRun(tmp_path, run.rounds, num_images=2, changes=local | changes).write_config()
    assert sa_engine(monkeypatch, *command) == cli.USER_ERROR
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot resume {run.out}: ")
    assert "seed was 0, is now 7; simulated_annotator.max_clicks was 2, is now 3." in error
    assert _files(run) == before


def test_how_machines_are_used_may_change_from_one_time_to_the_next(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, [UNTRAINED], num_images=2)
    run.run()
    assert run.anew(tmp_path, workers=7, lease_seconds=1, max_attempts=9).run() == run.run()


def test_one_stage_runs_without_the_others_and_they_after_it(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, [{**MANUAL, "images": 2}, AUTOMATIC], num_images=4)
    ((index, outcome),) = run.run(stage=StageName.FULLY_AUTOMATIC)
    assert (index, outcome.checkpoint) == (1, "checkpoints/tiny")
    assert not run.store.exists(layout.plan_path(run.config.round_folder(0)))
    (_, first), (_, second) = run.run()
    assert first.checkpoint == "checkpoints/round-00"
    assert second == outcome
    run.assert_whole()


def test_a_stage_begun_before_its_turn_ends_with_the_checkpoint_it_was_begun_with(
    tmp_path: Path,
) -> None:
    rounds = [{**MANUAL, "images": 2}, {**MANUAL, "images": 2}, AUTOMATIC]
    run = TinyRun(tmp_path, rounds, num_images=6)
    run.run(stage=StageName.FULLY_AUTOMATIC)
    for name in ("outcome.json", "manifest.json", "shards/shard-000000.parquet"):
        (run.out / run.config.round_folder(2) / name).unlink()  # as if killed on its way
    outcomes = dict(run.run())
    assert outcomes[1].checkpoint == "checkpoints/round-01"
    assert outcomes[2].checkpoint == "checkpoints/tiny"
    run.assert_whole()


@pytest.mark.parametrize("snap", ["snap", "fully_automatic"])
def test_a_round_of_snapped_masks_goes_on_with_the_superpixels_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snap: str
) -> None:
    changes = {"snap": True} if snap == "snap" else {snap: {"snap": True}}
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=2, changes=changes)
    run.run()
    for name in ("outcome.json", "manifest.json", "shards/shard-000000.parquet"):
        (run.out / run.config.round_folder(0) / name).unlink()  # as if killed on its way
    monkeypatch.setattr("engine.rounds.edge_detector_sha256", lambda: "of others")
    if snap == "fully_automatic":
        with pytest.raises(ConfigError, match=r"edge_detector .*, is now of others"):
            run.run()
    else:
        run.run()
        run.assert_whole()


@pytest.mark.parametrize(
    ("scorer", "stage", "changes"),
    [
        ("mask_scorer", AUTOMATIC, {"fully_automatic": {"snap": True, "rescore": True}}),
        ("click_scorer", UNTRAINED, {"snap": True}),
    ],
)
def test_a_round_goes_on_with_the_scorer_it_was_begun_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
    stage: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    run = TinyRun(tmp_path, [stage], num_images=2, changes=changes)
    run.run()
    run.assert_whole()
    for name in ("outcome.json", "manifest.json", "shards/shard-000000.parquet"):
        (run.out / run.config.round_folder(0) / name).unlink()  # as if killed on its way
    monkeypatch.setattr(f"engine.rounds.{scorer}_sha256", lambda: "of others")
    with pytest.raises(ConfigError, match=rf"{scorer} .*, is now of others"):
        run.run()


def test_a_worse_checkpoint_is_not_promoted_if_it_must_be_better_and_both_figures_are_kept(
    tmp_path: Path,
) -> None:
    ruin = {"retraining": {"training": {"learning_rate": 0.1, "warmup_steps": 0}}}
    rounds = [{**MANUAL, "images": 2, "promote": "if_better"}, {**MANUAL, "promote": "always"}]
    run = TinyRun(tmp_path, rounds, num_images=4, held_out=3, changes=ruin)
    (_, kept), (_, promoted) = run.run()

    start = load_start(run.store)
    assert start is not None
    assert (kept.checkpoint, kept.trained) == ("checkpoints/tiny", "checkpoints/round-00")
    assert kept.evaluation == start.evaluation
    assert is_better(kept.evaluation, kept.trained_evaluation)
    lineage = load_checkpoint(run.out / "checkpoints/round-01").lineage
    assert lineage is not None
    assert lineage.parent == _label(run, "tiny")  # not the ruined one

    assert promoted.checkpoint == promoted.trained == "checkpoints/round-01"
    assert promoted.evaluation == promoted.trained_evaluation
    assert is_better(start.evaluation, promoted.evaluation)


def test_a_better_checkpoint_is_promoted_and_an_equal_or_unknown_one_is_not() -> None:
    def evaluation(
        miou_1_click: float, num_images: int = 2, three: float = 0.9, five: float = 0.9
    ) -> Evaluation:
        figures = {"miou_1_click": miou_1_click, "miou_3_clicks": three, "miou_5_clicks": five}
        others = {"miou_1_click_oracle": 0.9, "iou_head_error": 0.1}
        return Evaluation(num_images=num_images, num_masks=4, **figures, **others)

    assert is_better(evaluation(0.51), evaluation(0.5))
    assert not is_better(evaluation(0.5), evaluation(0.5))
    assert not is_better(evaluation(float("nan")), evaluation(0.5))
    assert not is_better(evaluation(0.51, three=0.88), evaluation(0.5))  # lost by the third click
    assert is_better(evaluation(0.53, three=0.88), evaluation(0.5))
    assert not is_better(evaluation(0.49, three=0.95, five=0.95), evaluation(0.5))
    assert not is_better(evaluation(0.5), None)
    assert not is_better(None, evaluation(0.5))
    assert not is_better(evaluation(0.51, num_images=1), evaluation(0.5))  # the harder one is gone


def test_a_checkpoint_is_compared_with_its_parent_on_the_images_that_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = {
        "retraining": {"training": {"learning_rate": 1e-12}},
        "execution": {"max_given_up": 0.5},
    }
    rounds = [{**MANUAL, "images": 2, "promote": "if_better"}]
    run = TinyRun(tmp_path, rounds, num_images=3, held_out=3, changes=still)
    run.run(stage=StageName.FULLY_AUTOMATIC)  # the start is evaluated, no round is run
    start = load_start(run.store)
    assert start is not None
    assert start.evaluation is not None
    corpus = Corpus(run.store)
    Path(corpus.rows(corpus.select(split="held_out").tolist())[0].uri).unlink()
    with caplog.at_level("WARNING"):
        ((_, outcome),) = run.run()
    assert "its parent is measured anew" in caplog.text
    assert outcome.evaluation is not None
    assert outcome.trained_evaluation is not None
    assert outcome.evaluation.num_images == start.evaluation.num_images - 1
    assert outcome.evaluation.num_masks == outcome.trained_evaluation.num_masks


def test_a_training_that_diverges_ends_in_one_line(tmp_path: Path) -> None:
    ruin = {"retraining": {"training": {"learning_rate": 1e6, "warmup_steps": 0}}}
    run = TinyRun(tmp_path, [MANUAL], num_images=2, changes=ruin)
    with pytest.raises(EngineError, match=r"round-00 has diverged before step 2: .*learning_rate"):
        run.run()
    assert not run.store.has_folder("checkpoints/round-00")


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([UNTRAINED, UNTRAINED], r"round 1 \(assisted_manual\) has no images left: .* 2 usable"),
        ([SEMI], "nothing to train on: no mask in any round"),
        (
            [{**MANUAL, "promote": "if_better"}],
            "if_better compares .* raise corpus.held_out",
        ),
    ],
    ids=["no images left", "no masks for a detector", "nothing to compare on"],
)
def test_rounds_that_cannot_be_run_say_why_in_one_line(
    tmp_path: Path, rounds: list[dict[str, object]], message: str
) -> None:
    run = TinyRun(tmp_path, rounds, num_images=2)
    with pytest.raises(EngineError, match=message) as caught:
        run.run()
    assert "\n" not in str(caught.value)


def test_a_round_that_will_have_no_images_is_found_before_any_is_run(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, [UNTRAINED, UNTRAINED], num_images=2)
    with pytest.raises(ConfigError, match="round 1"):
        run.run()
    assert load_start(run.store) is None
    assert not run.store.exists(layout.plan_path(run.config.round_folder(0)))


def test_a_simulated_annotator_without_ground_truth_is_refused(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, [UNTRAINED], num_images=2)
    folder = {"kind": "folder", "name": "drawn", "path": str(run.images / "images")}
    blind = TinyRun(tmp_path, run.rounds, num_images=2, changes={"sources": [folder]})
    with pytest.raises(ConfigError, match="needs ground truth, but 2 of its 2 images have none"):
        blind.run()


def test_one_more_training_starts_from_the_last_checkpoint_and_takes_a_new_name(
    tmp_path: Path,
) -> None:
    run = TinyRun(tmp_path, [MANUAL], num_images=2)
    run.run()
    assert train_once(run.store, "longer", steps=3) == "checkpoints/longer"
    lineage = load_checkpoint(run.out / "checkpoints/longer").lineage
    assert lineage is not None
    assert (lineage.parent, lineage.steps) == (_label(run, "round-00"), 3)
    with pytest.raises(EngineError, match="checkpoints/longer exists; choose another --name"):
        train_once(run.store, "longer")


def test_a_start_from_another_runs_round_does_not_pass_for_what_this_one_trains(
    tmp_path: Path,
) -> None:
    first = TinyRun(tmp_path / "first", [MANUAL], num_images=2)
    first.run()
    start = str(first.out / "checkpoints/round-00")
    second = TinyRun(tmp_path / "second", [MANUAL], num_images=2, changes={"checkpoint": start})
    ((_, outcome),) = second.run()
    assert outcome.trained == "checkpoints/round-00"
    lineage = load_checkpoint(second.out / "checkpoints/round-00").lineage
    assert lineage is not None
    assert lineage.parent == _label(second, "start-round-00") != _label(first, "round-00")
    with pytest.raises(ConfigError, match="--name round-01 is for what the run's own rounds train"):
        train_once(second.store, "round-01")


def test_a_picture_that_cannot_be_drawn_any_more_does_not_fail_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, [UNTRAINED], num_images=2)
    run.run()
    run.image(0).unlink()
    assert sa_engine(monkeypatch, "run", run.write_config(), "--out", str(run.out)) == 0


def test_runs_that_name_one_database_of_tasks_are_kept_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = {"execution": {"tasks_url": f"sqlite:///{tmp_path}/tasks.sqlite"}}
    TinyRun(tmp_path / "first", [UNTRAINED], num_images=2, changes=url).run()
    second = TinyRun(tmp_path / "second", [UNTRAINED], num_images=2, changes=url)
    with pytest.raises(ConfigError, match="database of another run"):
        second.run()
    elsewhere = {"execution": {"tasks_url": f"sqlite:///{tmp_path}/others.sqlite"}}
    with caplog.at_level("WARNING"):
        replace(second, changes=elsewhere).run()
    assert "only those answers count that have moved with it" in caplog.text
    second.assert_whole()
    with pytest.raises(ConfigError, match="database of another run"):
        second.run()
    assert "others.sqlite" in (frozen_config(second.store).execution.tasks_url or "")


def test_a_queue_that_cannot_be_opened_is_known_before_all_other_work(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    url = {"execution": {"tasks_url": f"sqlite:///{tmp_path}/disk/tasks.sqlite"}}
    run = TinyRun(tmp_path, [AUTOMATIC, UNTRAINED], num_images=2, changes=url)
    with pytest.raises(StorageError, match="the annotation queue refused"):
        run.run()
    assert not (run.out / "corpus").exists()


def _label(run: TinyRun, name: str) -> str:
    return load_checkpoint(run.out / "checkpoints" / name).label


def _files(run: TinyRun) -> dict[str, int]:
    """All files of a run, by when they were written."""
    paths = (path for path in run.out.rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in paths}
