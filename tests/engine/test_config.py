from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import layout
from engine.config import (
    EngineConfig,
    follow_execution,
    freeze_config,
    frozen_config,
    load_config,
    merged,
    parse_config,
    with_images,
)
from engine.errors import ConfigError
from engine.sources import CocoSource, FolderSource
from engine.store import LocalStore
from stages.records import StageName

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"))

MINIMAL = """
checkpoint: sa-tiny
sources:
  - {kind: coco, name: photos, annotations: photos/instances.json}
rounds:
  - {stage: assisted_manual, source: photos, images: 5}
  - {stage: fully_automatic, source: photos, retrain: false}
"""


def changed(**changes: Any) -> EngineConfig:
    given = yaml.safe_load(MINIMAL)
    return parse_config(yaml.safe_dump(merged(given, changes)), "changed.yaml")


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, "run.yaml")
    message = str(refused.value)
    assert message.startswith("run.yaml")
    assert "\n" not in message
    return message


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "run")


def test_what_is_not_said_is_the_papers() -> None:
    config = parse_config(MINIMAL, "run.yaml")
    assert [r.stage for r in config.rounds] == [
        StageName.ASSISTED_MANUAL,
        StageName.FULLY_AUTOMATIC,
    ]
    assert config.fully_automatic.points_per_side == 32
    assert config.fully_automatic.filters.pred_iou_thresh == 0.88
    assert config.assisted_manual.max_mask_seconds == 30
    assert config.simulated_annotator.click_seconds == 1.5
    assert config.work_size.max_short_side == 1500
    assert config.retraining.mix.assisted_manual == 10
    assert config.rounds[0].retrain
    assert config.round_folder(1) == "rounds/01-fully_automatic"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_that_is_shipped_is_valid(name: str) -> None:
    assert SHIPPED
    config = load_config(name)
    assert config.checkpoint
    assert config == load_config(str(Path(__file__).parents[2] / "configs" / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("seeed: 3", "seeed", "3"),
        ("fully_automatic: {filters: {pred_iou_tresh: 0.9}}", "pred_iou_tresh", "0.9"),
        ("images_per_shard: many", "images_per_shard", "'many'"),
        ("images_per_shard: 0", "images_per_shard", "0"),
        ("execution: {executor: spark}", "execution.executor", "'spark'"),
        ("execution: {max_given_up: 1.5}", "execution.max_given_up", "1.5"),
        ("work_size: {max_short_side: -4}", "work_size.max_short_side", "-4"),
        ("corpus: 7", "corpus", "7"),
        ("retraining: {mix: {scale_jitter: [0, 2]}}", "retraining.mix.scale_jitter.0", "0"),
        # The paper writes 88.0 and 95.0, in percent.
        ("fully_automatic: {filters: {pred_iou_thresh: 88.0}}", "pred_iou_thresh", "88.0"),
        ("fully_automatic: {filters: {stability_score_thresh: 95.0}}", "score_thresh", "95.0"),
        ("fully_automatic: {filters: {box_nms_thresh: 70}}", "box_nms_thresh", "70"),
        ("fully_automatic: {filters: {max_mask_area_fraction: 95}}", "area_fraction", "95"),
        ("fully_automatic: {filters: {crop_edge_tolerance: -5}}", "edge_tolerance", "-5"),
        ("semi_automatic: {detector_score_thresh: 30}", "detector_score_thresh", "30"),
        ("simulated_annotator: {target_iou: 90}", "simulated_annotator.target_iou", "90"),
        ("simulated_annotator: {brush_pixels_per_second: 0}", "brush_pixels_per_second", "0"),
    ],
)
def test_a_wrong_field_is_named_with_its_path_and_value(line: str, path: str, value: str) -> None:
    message = refusal(MINIMAL + line)
    assert path in message
    assert f"(got {value}" in message


def test_a_loss_that_only_a_pretraining_has_is_refused() -> None:
    message = refusal(MINIMAL + "retraining: {training: {self_report_weight: 2}}")
    assert "training.self_report_weight is 2.0, expected 0" in message


def test_a_wrong_field_within_a_list_is_named_with_its_place() -> None:
    message = refusal(MINIMAL.replace("images: 5", "images: lots"))
    assert "rounds.0.images" in message
    assert "(got 'lots')" in message


def test_an_unknown_stage_is_refused_with_those_there_are() -> None:
    message = refusal(MINIMAL.replace("fully_automatic", "automatic"))
    assert "rounds.1.stage" in message
    for stage in StageName:
        assert f"'{stage}'" in message


def test_a_round_over_an_unknown_source_is_refused_with_those_there_are() -> None:
    message = refusal(MINIMAL.replace("source: photos, images", "source: fotos, images"))
    assert "no source is named 'fotos'; the corpus has photos" in message


def test_batches_that_training_workers_cannot_share_are_refused() -> None:
    batches = "retraining: {training: {batch_images: 4}}\n"
    message = refusal(MINIMAL + batches + "execution: {train_workers: 3}")
    assert "batch_images is 4, expected a multiple of the 3 of execution.train_workers" in message


def test_an_evaluation_on_an_unknown_source_is_refused() -> None:
    message = refusal(MINIMAL + "evaluation: {sources: [fotos]}")
    assert "no source is named 'fotos'" in message


def test_an_unknown_kind_of_source_is_refused_with_those_there_are() -> None:
    message = refusal(MINIMAL.replace("kind: coco", "kind: lmdb"))
    assert "sources.0" in message
    assert "'lmdb'" in message
    assert "'folder'" in message


def test_two_sources_of_one_name_are_refused() -> None:
    source = "  - {kind: folder, name: photos, path: elsewhere}\n"
    message = refusal(MINIMAL.replace("rounds:", f"{source}rounds:"))
    assert "two sources are named photos" in message


@pytest.mark.parametrize("missing", ["checkpoint", "sources", "rounds"])
def test_what_must_be_said_is_asked_for(missing: str) -> None:
    given = yaml.safe_load(MINIMAL)
    del given[missing]
    assert f"{missing}: Field required" in refusal(yaml.safe_dump(given))


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refusal(MINIMAL + "seed: x\nname: [1]\n")
    assert "seed: " in message
    assert "name: " in message


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\t- x"])
def test_what_is_no_yaml_is_refused(text: str) -> None:
    assert "is not YAML" in refusal(text)


@pytest.mark.parametrize("place", ["", "/", "/tasks.sqlite", "/:memory:", "/runs/../tasks.sqlite"])
@pytest.mark.parametrize("backend", ["sqlite", "sqlite+pysqlite"])
def test_a_queue_that_is_another_in_every_folder_is_refused(backend: str, place: str) -> None:
    message = refusal(MINIMAL + f"execution: {{tasks_url: '{backend}://{place}'}}")
    assert "execution.tasks_url: " in message
    assert "expected an absolute path, as in sqlite:////mnt" in message


@pytest.mark.parametrize(
    "url", ["sqlite:////mnt/tasks.sqlite", "postgresql+psycopg://ann@db/tasks"]
)
def test_a_queue_that_is_the_same_from_everywhere_is_taken(url: str) -> None:
    assert changed(execution={"tasks_url": url}).execution.tasks_url == url


def test_a_key_that_is_given_twice_is_refused_with_both_lines() -> None:
    twice = "execution: {workers: 2}\nseed: 1\nexecution: {gpus_per_worker: 1}\n"
    assert "execution is given in line 1 and in line 3" in refusal(twice + MINIMAL)
    nested = MINIMAL + "execution: {workers: 2, workers: 3}\n"
    assert "workers is given in line 8 and in line 8" in refusal(nested)


def test_a_key_may_replace_that_of_an_anchor() -> None:
    merging = (
        MINIMAL.replace("- {stage: assisted_manual,", "- &first {stage: assisted_manual,")
        + "  - {<<: *first, images: 7}\n"
    )
    assert [r.images for r in parse_config(merging, "run.yaml").rounds] == [5, None, 7]


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a\n- b", "list"), ("7", "int")])
def test_yaml_that_is_no_mapping_is_refused(text: str, kind: str) -> None:
    assert f"holds {kind}, expected a mapping" in refusal(text)


def test_a_config_that_does_not_exist_is_refused_with_those_that_are_shipped() -> None:
    with pytest.raises(ConfigError, match=r"cannot read config nowhere\.yaml: No such file") as it:
        load_config("nowhere.yaml")
    assert all(name in str(it.value) for name in SHIPPED)


def test_a_config_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config(str(tmp_path / "photo.jpg"))


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config(str(tmp_path))


def test_a_frozen_config_is_read_back_equal(store: LocalStore) -> None:
    config = changed(seed=5, fully_automatic={"filters": {"pred_iou_thresh": 1e-7}})
    freeze_config(store, config)
    assert frozen_config(store) == config
    freeze_config(store, config)  # the same once more is no change


def test_a_changed_config_is_refused_with_both_values(store: LocalStore) -> None:
    freeze_config(store, changed())
    filters = {"filters": {"pred_iou_thresh": 0.9}}
    with pytest.raises(ConfigError) as refused:
        freeze_config(store, changed(fully_automatic=filters, seed=4))
    message = str(refused.value)
    assert "fully_automatic.filters.pred_iou_thresh was 0.88, is now 0.9" in message
    assert "seed was 0, is now 4" in message
    assert "points_per_side" not in message
    assert "\n" not in message
    assert frozen_config(store) == changed()


def test_a_changed_round_is_refused_with_its_place(store: LocalStore) -> None:
    freeze_config(store, changed())
    given = yaml.safe_load(MINIMAL)
    given["rounds"][1]["retrain"] = True
    with pytest.raises(ConfigError, match=r"rounds\.1\.retrain was False, is now True"):
        freeze_config(store, parse_config(yaml.safe_dump(given), "run.yaml"))


def test_one_round_more_is_refused(store: LocalStore) -> None:
    freeze_config(store, changed())
    given = yaml.safe_load(MINIMAL)
    given["rounds"].append(given["rounds"][1])
    with pytest.raises(ConfigError, match=r"rounds was .*, is now "):
        freeze_config(store, parse_config(yaml.safe_dump(given), "run.yaml"))


def test_a_field_that_a_later_version_adds_leaves_the_hash_of_a_config_as_it_was() -> None:
    class Later(EngineConfig):
        added: int = 7

    given = changed(seed=3).model_dump(mode="json")
    assert Later.model_validate(given).sha256 == EngineConfig.model_validate(given).sha256
    later = Later.model_validate({**given, "added": 8})
    assert later.sha256 != EngineConfig.model_validate(given).sha256


def test_a_folder_and_a_list_of_the_same_path_are_other_configs() -> None:
    folder, listed = (
        changed(
            sources=[{"kind": kind, "name": "photos", "path": "photos"}],
            rounds=[{"stage": "fully_automatic", "source": "photos", "retrain": False}],
        )
        for kind in ("folder", "list")
    )
    assert folder.sha256 != listed.sha256


def test_how_a_run_uses_its_machines_may_change(store: LocalStore) -> None:
    freeze_config(store, changed())
    other = changed(execution={"executor": "local", "workers": 7, "max_attempts": 9})
    freeze_config(store, other)
    assert frozen_config(store) == changed()
    follow_execution(store, other)
    assert frozen_config(store) == other  # servers of the run read there where its tasks are
    assert other.sha256 == changed().sha256
    assert changed(seed=1).sha256 != changed().sha256


def test_a_folder_without_a_run_is_refused(store: LocalStore) -> None:
    with pytest.raises(ConfigError, match="is no run of this engine"):
        frozen_config(store)


def test_a_frozen_config_of_another_version_is_refused_in_words(store: LocalStore) -> None:
    store.publish(layout.CONFIG, (MINIMAL + "brightness: 3\n").encode())
    with pytest.raises(ConfigError, match=r"config\.yaml: brightness: Extra inputs"):
        freeze_config(store, changed())


def test_a_config_can_be_run_over_other_images_with_annotations() -> None:
    mine = CocoSource(name="mine", annotations="/data/mine.json")
    config = with_images(changed(evaluation={"sources": ["photos"]}), mine)
    assert (config.name, config.sources) == ("mine", (mine,))
    assert [r.source for r in config.rounds] == ["mine", "mine"]
    assert config.evaluation.sources is None
    assert config.rounds[0].images == 5
    assert config.corpus.held_out_fraction > 0


def test_the_demo_over_annotated_images_leaves_some_for_every_round() -> None:
    config = with_images(load_config("demo"), CocoSource(name="mine", annotations="/mine.json"))
    stages = [StageName.ASSISTED_MANUAL, StageName.ASSISTED_MANUAL, StageName.SEMI_AUTOMATIC]
    assert [r.stage for r in config.rounds] == [*stages, StageName.FULLY_AUTOMATIC]
    assert [r.images is None for r in config.rounds] == [False, False, False, True]


def test_images_without_annotations_keep_the_automatic_rounds_only() -> None:
    mine = FolderSource(name="mine", path="/data/mine")
    config = with_images(changed(), mine)
    assert [r.stage for r in config.rounds] == [StageName.FULLY_AUTOMATIC]
    assert config.corpus.held_out_fraction == 0  # there is nothing to evaluate by
    manual = changed(rounds=[{"stage": "assisted_manual", "source": "photos"}])
    with pytest.raises(ConfigError, match="mine has no annotations"):
        with_images(manual, mine)


def test_merging_replaces_nested_fields_and_nothing_else() -> None:
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
    assert merged(base, {"a": {"c": {"d": 3}}, "e": [4]}) == {
        "a": {"b": 1, "c": {"d": 3}},
        "e": [4],
    }
    assert base["e"] == [1, 2]
