"""Runs that wait for people."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offices import PEOPLE, Office, leave, on, open_office
from tiny_runs import AUTOMATIC, MANUAL, SEMI, TinyRun


@pytest.fixture
def office(tmp_path: Path, tasks_url: str | None) -> Iterator[Office]:
    """Two images of stage one."""
    rounds = [MANUAL | PEOPLE | {"retrain": False}]
    opened = open_office(TinyRun(tmp_path, rounds, 2, changes=on(tasks_url)))
    yield opened
    leave(opened)


@pytest.fixture
def semi_office(tmp_path: Path, tasks_url: str | None) -> Iterator[Office]:
    """Two images of stage two, after a simulated round of two."""
    rounds: list[dict[str, Any]] = [
        MANUAL | {"images": 2, "retrain": False},
        SEMI | PEOPLE | {"retrain": False},
    ]
    opened = open_office(TinyRun(tmp_path, rounds, 4, changes=on(tasks_url)))
    yield opened
    leave(opened)


@pytest.fixture
def finished(tmp_path: Path) -> TinyRun:
    """Four images, annotated by nobody."""
    run = TinyRun(tmp_path, [AUTOMATIC], 4)
    run.run()
    return run
