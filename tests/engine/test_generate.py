import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.cli import USER_ERROR
from engine.config import load_config
from engine.errors import ConfigError
from engine.generate import automatic_config, generate_masks
from fakes import save_tiny_sam
from tiny_runs import sa_engine


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.full((240, 320, 3), (60, 110, 60), dtype=np.uint8)
    pixels[60:180, 90:230] = (210, 180, 60)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_fields_of_a_preset_and_of_its_filters_may_be_set() -> None:
    config = automatic_config("demo", ["points_per_side=3", "box_nms_thresh=0.5", "snap=false"])
    expected = load_config("demo").fully_automatic
    filters = expected.filters.model_copy(update={"box_nms_thresh": 0.5})
    changes = {"points_per_side": 3, "snap": False, "filters": filters}
    assert config == expected.model_copy(update=changes)


@pytest.mark.parametrize(
    ("preset", "setting", "problem"),
    [
        ("papers", "snap=true", "cannot read config papers.*or a preset: paper, official"),
        ("paper", "snap", "expected name=value"),
        ("paper", "snapping=true", "snapping"),
        ("paper", "points_per_side=[", "not YAML"),
    ],
)
def test_what_is_no_preset_or_no_field_is_refused(preset: str, setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        automatic_config(preset, [setting])


def test_the_first_command_of_a_new_user_finds_the_object(
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "masks"
    settings = ["--set", "points_per_side=4", "--set", "crop_n_layers=0"]  # for its time alone
    assert sa_engine(monkeypatch, "generate", photo, "--out", str(out), *settings) == 0
    found = json.loads((out / "photo.json").read_text())["annotations"]
    boxes = [annotation["bbox"] for annotation in found]
    assert any(np.allclose(box, (90, 60, 140, 120), atol=4) for box in boxes), boxes
    assert f"{len(found)} masks" in capsys.readouterr().out
    assert (out / "photo.png").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("pred_iou_thresh=1",), "low_predicted_iou 12; a lower --set pred_iou_thresh may help"),
        (("pred_iou_thresh=-100", "stability_score_thresh=1"), "low_stability 12"),
    ],
)
def test_an_image_without_masks_is_told_with_what_may_help(
    photo: str, tmp_path: Path, settings: tuple[str, ...], told: str
) -> None:
    checkpoint = save_tiny_sam(str(tmp_path / "tiny"))
    (line,) = generate_masks(
        [photo], checkpoint, tmp_path / "masks", settings=("points_per_side=2", *settings)
    )
    assert line.endswith(f"0 masks; dropped: {told}")


def test_images_that_are_none_cost_the_exit_status_and_nothing_of_their_neighbours(
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, out = save_tiny_sam(str(tmp_path / "tiny")), tmp_path / "masks"
    (tmp_path / "noise.png").write_bytes(b"no image at all")
    images = str(tmp_path / "noise.png"), photo
    settings = ("--checkpoint", checkpoint, "--out", str(out), "--set", "points_per_side=2")
    assert sa_engine(monkeypatch, "generate", *images, *settings) == USER_ERROR
    told = capsys.readouterr()
    assert "noise.png: " in told.out
    assert "1 of 2 images could not be read" in told.err
    assert sorted(path.name for path in out.iterdir()) == ["photo.json", "photo.png"]


def test_images_of_one_name_have_files_of_their_own(photo: str, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("one/a.png", "two/a.png", "two/a-0.png")]
    for image in images:
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(Path(photo).read_bytes())
    checkpoint, out = save_tiny_sam(str(tmp_path / "tiny")), tmp_path / "masks"
    uris = [str(image) for image in images]
    assert len(list(generate_masks(uris, checkpoint, out, settings=("points_per_side=1",)))) == 3
    assert sorted(path.stem for path in out.glob("*.json")) == ["a-0", "a-1", "a-2"]
