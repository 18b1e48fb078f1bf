"""The scripts that measure how good masks are run at a tiny size, and say what they promise."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    annotator_aids,
    automatic_quality,
    click_pictures,
    loop,
    mask_ranking,
    seed_figure,
)
from engine.scenes import write_scenes
from fakes import save_tiny_sam


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of which half are for evaluation; three people agreed on every region."""
    directory = tmp_path_factory.mktemp("scenes")
    write_scenes(directory, 3, 12, (60, 80))
    document = json.loads((directory / "instances.json").read_text())
    for image in document["images"]:
        image["split"] = "val" if image["id"] % 2 == 0 else "train"
    for annotation in document["annotations"]:
        annotation |= {"votes": 3, "n_annotators": 3}
    (directory / "instances.json").write_text(json.dumps(document))
    return directory


def test_automatic_masks_are_compared_with_regions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--photographs", str(folder), "--checkpoint", save_tiny_sam(str(tmp_path / "sam"))]
    loose = [
        "snap=false",
        "pred_iou_thresh=-9",
        "stability_score_thresh=0",
        "min_mask_region_area=0",
    ]
    arguments += ["--max-images", "2", "--set", *loose, "points_per_side=3"]
    automatic_quality.main([*arguments, "--pictures", str(tmp_path / "pictures")])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pictures = [line for line in lines if "picture" in line]
    first, *best, people = [line for line in lines if "picture" not in line]
    assert first["images"] == 2
    assert first["masks_per_image"] > 0
    assert [line["best"] for line in best] == [10, 20, 50, 100]
    assert all(line["masks_per_image"] <= line["best"] for line in best)
    assert people["precise"] == 1, "all three drew every region"
    assert 0 <= first["precise"] <= 1
    assert 0 <= first["covered"] <= 1
    assert len(pictures) == len(automatic_quality.PICTURES)
    with Image.open(tmp_path / "pictures" / "astronaut.png") as picture:
        assert np.asarray(picture).shape[2] == 3


def test_scores_are_asked_how_well_they_rank_masks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--photographs", str(folder), "--checkpoint", save_tiny_sam(str(tmp_path / "sam"))]
    mask_ranking.main([*arguments, "--max-images", "2", "--points-per-side", "3"])
    first, *scores = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["masks"] == 2 * 9 * 3
    assert [score["score"] for score in scores] == ["predicted_iou", "stability_score", "area"]
    quality = np.array([0.1, 0.9, 0.3, 0.6])
    right, wrong = mask_ranking.ranking(quality, quality), mask_ranking.ranking(-quality, quality)
    assert (right["correlation"], right["auc"], right["good_among_best_tenth"]) == (1, 1, 1)
    assert (wrong["correlation"], wrong["auc"], wrong["good_among_best_tenth"]) == (-1, 0, 0)


def test_annotators_draw_the_same_objects_with_aids_and_without(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--photographs", str(folder), "--checkpoint", save_tiny_sam(str(tmp_path / "sam"))]
    annotator_aids.main([*arguments, "--split", "val", "--max-images", "2", "--max-objects", "2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["snap"] for line in lines] == [False, False, True, True]
    assert [line["zoom_in"] for line in lines] == [False, True, False, True]
    for line in lines:
        assert 2 <= line["objects"] <= 4
        assert line["seconds_a_mask"] > 0
        assert line["clicks"] + line["strokes"] > 0
        assert 0 <= line["thrown_away"] < line["objects"]


def test_pictures_of_clicks_are_one_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = tmp_path / "clicks.png"
    command = ["click_pictures", "--checkpoint", save_tiny_sam(str(tmp_path / "sam"))]
    monkeypatch.setattr("sys.argv", [*command, "--out", str(sheet)])
    click_pictures.main()
    with Image.open(sheet) as picture:
        assert picture.width == 1500


def test_figure_of_a_training_shows_every_phase(tmp_path: Path) -> None:
    lines = [
        {"phase": "encoder", "step": 25, "neck_iou": 0.2, "pyramid_iou": 0.3},
        {"phase": "encoder", "step": 50, "neck_iou": 0.3, "pyramid_iou": 0.4},
        {"phase": "joint", "step": 25, "miou_first": 0.3, "dice_loss": 0.6},
        {"phase": "joint", "step": 25, "bsds_oracle": 0.4, "bsds_1": 0.3, "bsds_5": 0.5},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seed_figure.main([str(tmp_path / "log.jsonl"), str(tmp_path / "log.png")])
    with Image.open(tmp_path / "log.png") as picture:
        assert picture.width > 500
    figure = seed_figure.training_figure(lines)
    joint = next(
        line for line in figure.axes[0].lines if line.get_label() == "decoder, first answer"
    )
    assert list(joint.get_xdata()) == [75]


@pytest.mark.slow
def test_loop_runs_all_stages_and_sums_up(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny_sam(str(tmp_path / "sam"))
    arguments = ["--annotations", str(folder / "instances.json"), "--checkpoint", checkpoint]
    arguments += ["--out", str(tmp_path / "out"), "--seeds", "1", "--rounds", "2", "1", "1"]
    arguments += ["--images", "1", "--steps", "1", "--detector-steps", "1"]
    loop.main(arguments)
    printed = capsys.readouterr().out
    for text in ("seed 1", "3 fully_automatic", "gained", "saved in stage one", "over 1 seeds"):
        assert text in printed
    assert (tmp_path / "out" / "loop.png").stat().st_size > 1000
