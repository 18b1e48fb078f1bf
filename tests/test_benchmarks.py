"""The scripts that measure what the engine costs run at a tiny size, and say what they promise."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    engine_overhead,
    planning,
    process,
    ray_scaling,
    worker_memory,
)
from fakes import noise_and_model, save_tiny_sam
from faults import environment_here


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """The Ray of other tests where they have started one, else one that ends with this test."""
    import ray

    running = ray.is_initialized()
    with environment_here():
        yield
    if not running:
        ray.shutdown()


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_step_is_charged_with_its_own_memory_only() -> None:
    small = process.cost_of(bytearray, 2**20)
    large = process.cost_of(bytearray, 200 * 2**20)
    assert small.peak_mb < process.peak_mb()  # this process holds torch
    assert 190 <= large.peak_mb - small.peak_mb <= 210
    assert large.seconds >= 0


def test_planning_says_what_every_step_costs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "cost_of", process.measure)  # six processes take their time
    planning.main(["--images", "25", "--images-per-shard", "4"])
    lines = printed(capsys)
    assert [line["step"] for line in lines] == [
        "put the corpus together",
        "plan",
        "resume, half of the shards there",
        "status, half of the shards there",
        "resume, all there, and seal",
        "resume, all done",
        "status, all done",
    ]
    assert all(line.keys() == {"step", "seconds", "cpu_seconds", "peak_mb"} for line in lines)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_engine_overhead_compares_equal_rows_made_in_three_ways(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine_overhead.main(["--shards", "2", "--images-per-shard", "2", "--masks", "3"])
    lines = printed(capsys)
    assert [line["how"] for line in lines] == ["plain", "local", "ray"]
    for line in lines:
        assert line["masks_per_image"] == 3
        assert line["seconds_per_shard"] > 0
        assert line["milliseconds_per_image"] > 0
        assert line["ratio_to_plain"] > 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_worker_memory_says_how_much_a_worker_held_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    model = save_tiny_sam(str(tmp_path / "tiny"))
    options = ["--models", model, "--points", "4", "--select", "all"]
    worker_memory.main(["--image", str(tmp_path / "photograph.png"), *options])
    (line,) = printed(capsys)
    assert line["select"] == "all"
    assert line["points_per_side"] == 4
    assert 50 < line["peak_mb"] < 2000
    assert 0 < line["masks"] <= worker_memory.num_candidates(4)
    assert line.keys() >= {"model", "shard_mb", "seconds"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_two_workers_are_measured_beside_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = noise_and_model(tmp_path)
    ray_scaling.main([*arguments, "--copies", "3", "--points", "2"])
    lines = printed(capsys)
    assert [(line["how"], line["workers"]) for line in lines] == [
        ("plain loop", 1),
        ("engine", 1),
        ("engine", 2),
    ]
    assert len({line["masks"] for line in lines}) == 1
