"""Workers that die: of a signal, of one image, and with their machine."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.corpus import Corpus
from engine.ray_machines import RayMachines
from faults import environment_here, held_pids, lift, noted_pids, plant, take_away, wait_until
from stages.records import ImageStatus
from tiny_runs import AUTOMATIC, MANUAL, TinyRun

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

UNTRAINED_MANUAL = {**MANUAL, "retrain": False}


def test_workers_killed_inside_shards_and_just_before_publishing_cost_no_row(
    tmp_path: Path,
) -> None:
    run = TinyRun(tmp_path / "a", [AUTOMATIC], num_images=6)
    shards = run.out / "rounds/00-fully_automatic/shards"
    plant(run.image(1), "kill worker once")
    plant(shards / "shard-000002.parquet", "kill worker once")
    run.run(RayMachines(run.config.execution))

    run.assert_whole()
    assert not list(tmp_path.rglob("*.fault"))  # both were met
    old, young = sorted(shards.glob("*.staged"))
    assert ["shard-000000" in old.name, "shard-000002" in young.name] == [True, True]
    os.utime(old, (0, 0))
    run.run()
    assert list(shards.glob("*.staged")) == [young]

    undisturbed = TinyRun(tmp_path / "b", [AUTOMATIC], num_images=6)
    undisturbed.run()
    assert run.content() == undisturbed.content()


def test_an_image_that_always_kills_its_worker_is_given_up_and_its_neighbours_are_not(
    tmp_path: Path,
) -> None:
    rounds = [{**UNTRAINED_MANUAL, "images": 3}, AUTOMATIC]
    changes = {"images_per_shard": 3, "execution": {"max_attempts": 1}}
    run = TinyRun(tmp_path / "a", rounds, num_images=6, changes=changes)
    undisturbed = TinyRun(tmp_path / "b", rounds, num_images=6, changes=changes)
    undisturbed.run()
    deadly = [undisturbed.planned(0)[1], undisturbed.planned(1)[1]]
    for number in deadly:
        plant(run.image(number), "note kill worker")
    run.run(RayMachines(run.config.execution))

    run.assert_whole()
    for index, number in enumerate(deadly):
        records = {record.image_id: record for record in run.records(index)}
        given_up = records.pop(number)
        assert given_up.status is ImageStatus.GIVEN_UP
        assert given_up.error == "its worker died (ActorDiedError)"
        assert given_up.masks == ()
        assert all(record.status is ImageStatus.OK for record in records.values())
        assert all(record.masks for record in records.values())
    # A task beside another, then alone; a shard as a whole twice, then taken apart.
    assert [len(noted_pids(run.image(number))) for number in deadly] == [2, 3]


def test_an_image_that_kills_its_worker_while_images_are_scanned_costs_its_own_row_only(
    tmp_path: Path,
) -> None:
    changes = {"corpus": {"images_per_part": 3}}
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=6, changes=changes)
    plant(run.image(4), "note kill worker")
    run.run(RayMachines(run.config.execution))

    run.assert_whole()
    rows = Corpus(run.store).rows(range(6))
    given_up = rows.pop(4)
    assert given_up.status is ImageStatus.GIVEN_UP
    assert given_up.reason == "every attempt to scan it failed: its worker died (ActorDiedError)"
    assert given_up.uri == str(run.image(4))
    assert all(row.status is ImageStatus.OK for row in rows)
    assert sorted(record.image_id for record in run.records(0)) == [0, 1, 2, 3, 5]


def test_a_node_removed_while_its_workers_are_inside_shards_costs_no_row(
    tmp_path: Path, ray_cluster: "Cluster"
) -> None:
    run = TinyRun(tmp_path, [AUTOMATIC], num_images=14, changes={"execution": {"workers": 4}})
    with environment_here():
        node = ray_cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    for number in range(14):
        plant(run.image(number), "hold worker")
    with ThreadPoolExecutor(1) as driver:
        running = driver.submit(run.run, RayMachines(run.config.execution))
        wait_until(
            lambda: len(_standing(run)) == 4 or running.done(), "four workers are inside shards"
        )
        take_away(ray_cluster, node)
        for number in range(14):
            lift(run.image(number))
        running.result(timeout=90)

    run.assert_whole()
    assert all(record.status is ImageStatus.OK for record in run.records(0))


def _standing(run: TinyRun) -> set[int]:
    return {pid for number in range(run.num_images) for pid in held_pids(run.image(number))}
