"""What `sa-engine status` and `sa-engine stats` say, wherever they are asked."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engine import layout, status
from engine.config import follow_execution, freeze_config
from engine.manifest import PlanHeader, RoundPlan, freeze_plan, load_manifest
from engine.rounds import run_faults
from engine.shards import ShardFooter, ShardHeader, publish_shard, read_footer
from engine.status import run_status, with_tasks
from engine.store import Store
from engine.tasks import TaskCounts
from records import image_record
from stages.records import StageName
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
    (only,) = with_tasks(run.store, run_status(run.store))
    assert only.tasks == TaskCounts(submitted=2)


def test_statistics_of_sealed_rounds_are_their_manifests(
    undisturbed: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(status, "read_footer")
    run = undisturbed
    manifests = [
        load_manifest(run.store, run.config.round_folder(index)) for index in range(len(run.rounds))
    ]
    assert [told.stats for told in run_status(run.store)] == [sealed.stats for sealed in manifests]


def test_footers_of_an_unsealed_round_are_read_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=1)
    store, num_shards = run.store, 3 * status.FOOTERS_AT_ONCE + 1
    publish_shards(run, num_shards)
    readers = set()

    def read_slowly(store: Store, path: str) -> ShardFooter:
        readers.add(threading.get_ident())
        time.sleep(0.002)
        return read_footer(store, path)

    monkeypatch.setattr(status, "read_footer", read_slowly)
    (told,) = run_status(store)
    assert (told.state, told.shards_done, told.shards_left) == ("working", num_shards, 1)
    assert told.stats.num_images == num_shards
    assert 1 < len(readers) <= status.READERS


def test_a_shard_that_is_damaged_is_left_out_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=1)
    publish_shards(run, 3)
    shards = layout.shards_folder(run.config.round_folder(0))
    (run.store.root / layout.shard_path(shards, 1)).write_bytes(b"nonsense")
    (told,) = run_status(run.store)
    assert (told.shards_done, told.stats.num_images) == (3, 2)
    assert "round 0: shards that cannot be read, and are not counted: 1; " in caplog.text
    assert len(list(run_faults(run.store))) == 1


def publish_shards(run: TinyRun, num_shards: int) -> None:
    """Of one image each, and one more in the plan."""
    freeze_config(run.store, run.config)
    folder = run.config.round_folder(0)
    header = PlanHeader(
        round=0,
        stage=StageName.FULLY_AUTOMATIC,
        config_sha256=run.config.sha256,
        checkpoint="tiny",
    )
    freeze_plan(run.store, folder, RoundPlan(header, np.arange(num_shards + 1), 1))
    for shard in range(num_shards):
        path = layout.shard_path(layout.shards_folder(folder), shard)
        made_by = ShardHeader(shard=shard, **header.model_dump())
        publish_shard(run.store, path, made_by, [image_record(shard)])
