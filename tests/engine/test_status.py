"""What `sa-engine status` and `sa-engine stats` say, wherever they are asked."""

from pathlib import Path

import pytest

from engine.config import follow_execution
from engine.status import run_status, with_tasks
from engine.tasks import TaskCounts
from tiny_runs import AUTOMATIC, MANUAL, TinyRun, sa_engine

UNTRAINED = {**MANUAL, "retrain": False}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///{}/nowhere/tasks.sqlite", "nowhere/tasks.sqlite: No such file or directory"),
        ("sqlite:///{}/tasks.sqlite", "tasks.sqlite: No such file or directory"),
        ("postgresql+psycopg://ann@127.0.0.1:1/tasks", ""),
    ],
)
def test_a_queue_out_of_reach_costs_the_tasks_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    reason: str,
) -> None:
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=2)
    run.run()
    changes = {"execution": {"tasks_url": url.format(tmp_path)}}
    follow_execution(run.store, TinyRun(tmp_path, [AUTOMATIC], 2, changes=changes).config)
    capsys.readouterr()
    assert sa_engine(monkeypatch, "status", str(run.out)) == 0
    told = capsys.readouterr().out
    assert "0 fully_automatic" in told
    (line,) = (line for line in told.splitlines() if "out of reach" in line)
    assert line.startswith("tasks unknown, their queue is out of reach: ")
    assert reason in line
    assert sa_engine(monkeypatch, "stats", str(run.out)) == 0
    assert "out of reach" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.sqlite"))


def test_a_queue_elsewhere_is_asked_where_its_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"execution": {"tasks_url": f"sqlite:///{tmp_path}/tasks.sqlite"}}
    run = TinyRun(tmp_path, [UNTRAINED], num_images=2, changes=changes)
    run.run()
    capsys.readouterr()
    assert sa_engine(monkeypatch, "status", str(run.out)) == 0
    assert "out of reach" not in capsys.readouterr().out
    (status,) = with_tasks(run.store, run_status(run.store))
    assert status.tasks == TaskCounts(submitted=2)
