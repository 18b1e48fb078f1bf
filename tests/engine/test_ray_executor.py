"""The executor on real Ray actors, some of which die."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from engine import layout, ray_executor
from engine.context import WorkerSpec
from engine.errors import EngineError
from engine.executor import Done, Failed, Outcome, Unit, run_all
from engine.ray_executor import RayExecutor
from engine.store import LocalStore
from faults import environment_here, take_away
from faulty_units import Die, Echo, Raise, RefuseToWrite, ReturnBytes, ReturnLock, Sleep

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    """Of workers that hold no model."""
    store = LocalStore(tmp_path_factory.mktemp("run"))
    store.publish(layout.CONFIG, b"")
    return WorkerSpec(store.uri, checkpoint="")


@pytest.fixture(scope="module")
def executor(ray_cluster: object, spec: WorkerSpec) -> Iterator[RayExecutor]:
    with closing(RayExecutor(spec, workers=1)) as executor:
        yield executor


@pytest.fixture
def two_more_places(ray_cluster: "Cluster") -> Iterator[None]:
    with environment_here():
        node = ray_cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    yield
    take_away(ray_cluster, node)


def test_every_unit_comes_back_once_as_a_result_or_as_one_line(executor: RayExecutor) -> None:
    units: list[Unit] = [
        *(Echo(str(number)) for number in range(20)),
        ReturnBytes(2**20),
        Raise(ValueError("two\nlines")),
        RefuseToWrite(),
        ReturnLock(),
    ]
    outcomes = {id(outcome.unit): outcome for outcome in run_all(executor, units)}
    *echoed, large, raised, refused, stuck = (outcomes[id(unit)] for unit in units)
    assert [outcome.result for outcome in echoed] == [str(number) for number in range(20)]
    assert large.result == bytes(2**20)
    assert raised.error.startswith("ValueError: two lines (faulty_units.py:")
    assert "No space left" in refused.error
    assert [raised.storage, refused.storage] == [False, True]
    assert "lock" in stuck.error
    assert "\n" not in stuck.error


def test_of_two_units_in_hand_only_the_deadly_one_is_charged_with_the_death(
    executor: RayExecutor,
) -> None:
    deadly, innocent = Die(), Echo("alive")
    _wait_for_room(executor)
    executor.submit(deadly)
    executor.submit(innocent)
    failed, done = _outcomes(executor, 2)
    assert failed == Failed(deadly, "its worker died (ActorDiedError)")
    assert done == Done(innocent, "alive")


def test_what_must_be_alone_shares_its_worker_with_nothing(executor: RayExecutor) -> None:
    deadly = Die()
    _wait_for_room(executor)
    executor.submit(Echo("before"))
    executor.submit(deadly, alone=True)
    executor.submit(Echo("after"))
    assert not executor.has_room()
    before, failed, after = _outcomes(executor, 3)
    assert failed.unit is deadly
    assert [before, after] == [Done(before.unit, "before"), Done(after.unit, "after")]


def test_work_goes_on_with_the_workers_that_found_a_place(spec: WorkerSpec) -> None:
    with closing(RayExecutor(spec, workers=4)) as executor:  # of which two at most fit
        units = [Echo(str(number)) for number in range(20)]
        assert sorted(outcome.result for outcome in run_all(executor, units)) == sorted(
            unit.text for unit in units
        )


def test_starts_that_fail_with_their_machine_end_nothing_while_others_work(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "PAUSE_SECONDS", 0.0)
    with closing(RayExecutor(spec, workers=1)) as executor:
        _wait_for_room(executor)
        executor._slots.append(executor._start_actor())
        for _ in range(2 * ray_executor.DEAD_STARTS):
            doomed = executor._slots[1]
            ray.kill(doomed.actor)
            while executor._slots[1] is doomed:
                executor.wait(1.0)
        (outcome,) = run_all(executor, [Echo("still here")])
    assert outcome == Done(outcome.unit, "still here")


@pytest.mark.usefixtures("two_more_places")
def test_a_worker_that_cannot_start_ends_nothing_while_others_work(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_executor, "PAUSE_SECONDS", 0.1)
    with closing(RayExecutor(spec, workers=1)) as executor:
        _wait_for_room(executor)
        executor._spec = replace(spec, checkpoint="no-such-model")
        executor._slots.append(executor._start_actor())
        while executor._slots[1].failed_starts < 2:
            executor.wait(1.0)
        executor._spec = spec  # its machine is mended
        while executor._slots[1].starting is not None:
            executor.wait(1.0)
        (outcome,) = run_all(executor, [Echo("still here")])
    assert outcome == Done(outcome.unit, "still here")
    assert "a worker cannot start: " in caplog.text
    assert "no-such-model" in caplog.text


@pytest.mark.usefixtures("two_more_places")
def test_what_failed_is_tried_again_elsewhere_and_a_worker_that_fails_all_is_replaced(
    spec: WorkerSpec,
) -> None:
    with closing(RayExecutor(spec, workers=2)) as executor:
        while any(slot.starting is not None for slot in executor._slots):
            executor.wait(1.0)
        ill, sound = executor._slots
        for failures in range(1, ray_executor.MAX_FAILED_UNITS):
            _send_and_wait(executor, ill, Raise(ValueError("CUDA error")))
            assert ill.failures == failures
        retried = Echo("again")
        executor.submit(retried, alone=True)
        assert list(sound.running.values()) == [retried]
        assert _outcomes(executor, 1) == [Done(retried, "again")]
        _send_and_wait(executor, ill, Raise(ValueError("CUDA error")))
        successor, other = executor._slots
        assert successor is not ill
        assert other is sound
        while successor.starting is not None:
            executor.wait(1.0)
        _send_and_wait(executor, successor, Echo("well"))
        assert successor.failures == 0


def test_a_result_lost_with_its_machine_is_a_failure_of_its_unit(
    spec: WorkerSpec, ray_cluster: "Cluster"
) -> None:
    with environment_here():
        node = ray_cluster.add_node(num_cpus=3, object_store_memory=80 * 2**20)
    wide = replace(spec, threads=3)  # more than the head has
    with closing(RayExecutor(wide, workers=1)) as executor:
        _wait_for_room(executor)
        unit = ReturnBytes(2**24)
        executor.submit(unit)
        (slot,) = executor._slots
        ray.wait(list(slot.running), fetch_local=False)
        take_away(ray_cluster, node)
        (outcome,) = _outcomes(executor, 1)
    assert outcome.unit is unit
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("its worker died (")


def test_it_says_what_it_waits_for_when_no_worker_finds_a_place(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_executor, "PATIENCE_SECONDS", 0.1)
    with closing(RayExecutor(replace(spec, threads=64), workers=1)) as executor:
        assert executor.wait(0.2) == []
        assert not executor.has_room()
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("waiting for a worker: each needs 64 CPUs and 0 GPUs")


def test_a_unit_that_takes_far_longer_than_others_is_told_of_once(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_executor, "LONG_SECONDS", 0.5)
    list(run_all(executor, [Echo(str(number)) for number in range(20)]))
    executor.submit(Sleep(2.0))
    while not executor.wait(0.1):
        pass
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("Sleep has been worked on for 0 s on ")


def test_a_unit_that_never_ends_fails_and_others_go_on(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    list(run_all(executor, [Echo(str(number)) for number in range(20)]))
    endless = Sleep(3600.0)
    with monkeypatch.context() as patched:
        patched.setattr(ray_executor, "STUCK_SECONDS", 0.5)
        executor.submit(endless)
        (failed,) = _outcomes(executor, 1)
    assert failed.unit is endless
    assert isinstance(failed, Failed)
    assert re.match(r"its worker died \(stuck for \d+ s\)", failed.error)
    (message,) = (record.getMessage() for record in caplog.records)
    assert re.match(r"a worker died on .+ \(stuck for \d+ s\) with 1 units in hand", message)
    assert [outcome.result for outcome in run_all(executor, [Echo("next")])] == ["next"]


def test_workers_that_cannot_load_their_model_end_the_run_in_one_line(spec: WorkerSpec) -> None:
    with (
        closing(RayExecutor(replace(spec, checkpoint="no-such-model"), workers=1)) as executor,
        pytest.raises(EngineError, match=r"workers cannot start: .*no-such-model") as caught,
    ):
        _wait_for_room(executor)
    assert "\n" not in str(caught.value)


def test_a_run_folder_that_a_machine_does_not_see_ends_the_run(
    spec: WorkerSpec, tmp_path: Path
) -> None:
    with (
        closing(RayExecutor(replace(spec, store_uri=str(tmp_path)), workers=1)) as executor,
        pytest.raises(EngineError, match=f"on .+: .*{tmp_path} is not visible; use a disk"),
    ):
        _wait_for_room(executor)


def _send_and_wait(executor: RayExecutor, slot: ray_executor._Slot, unit: Unit) -> None:
    executor._send(slot, unit)
    (outcome,) = _outcomes(executor, 1)
    assert outcome.unit is unit


def _wait_for_room(executor: RayExecutor) -> None:
    while not executor.has_room():
        assert executor.wait(1.0) == []


def _outcomes(executor: RayExecutor, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        outcomes += executor.wait(1.0)
    return outcomes
