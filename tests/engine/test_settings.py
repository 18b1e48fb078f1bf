from pathlib import Path

import pytest

from engine.cli import USER_ERROR
from engine.config import frozen_config, load_config
from engine.errors import ConfigError
from engine.settings import with_settings
from tiny_runs import AUTOMATIC, TinyRun, sa_engine


def test_fields_are_named_with_dots_and_valued_in_yaml() -> None:
    demo = load_config("demo")
    automatic = "fully_automatic"
    settings = [f"{automatic}.rescore=false", f"{automatic}.filters.pred_iou_thresh=0.375"]
    mine = with_settings(demo, [*settings, "seed=1", "seed=3", "evaluation.sources=[photographs]"])
    filters = demo.fully_automatic.filters.model_copy(update={"pred_iou_thresh": 0.375})
    changes = {"rescore": False, "filters": filters}
    assert mine.fully_automatic == demo.fully_automatic.model_copy(update=changes)
    assert (mine.seed, mine.evaluation.sources) == (3, ("photographs",))
    assert mine.rounds == demo.rounds
    assert with_settings(demo, []) == demo


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("seed", "expected name=value"),
        ("seed=[", "not YAML"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("seed.of=1", "seed: Input should be a valid integer"),
        ("fully_automatic.rescored=true", "fully_automatic.rescored: Extra inputs"),
        ("=1", "Extra inputs"),
    ],
)
def test_what_is_no_field_or_no_value_of_one_is_refused(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"--set.*{problem}"):
        with_settings(load_config("demo"), [setting])


def test_a_run_has_what_was_set_and_goes_on_only_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyRun(tmp_path, [AUTOMATIC], num_images=1)
    command = ("run", tiny.write_config(), "--out", str(tiny.out))
    command += ("--set", "execution.executor=local")
    setting = ("--set", "fully_automatic.points_per_side=2")
    assert sa_engine(monkeypatch, *command, *setting) == 0
    assert frozen_config(tiny.store).fully_automatic.points_per_side == 2
    assert sa_engine(monkeypatch, *command, *setting) == 0
    assert sa_engine(monkeypatch, *command) == USER_ERROR
    assert "fully_automatic.points_per_side was 2, is now 4" in capsys.readouterr().err
