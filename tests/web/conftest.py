"""Runs that wait for people."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offices import PEOPLE, Office, leave, open_office
from tiny_runs import MANUAL, SEMI, TinyRun


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """Two images of stage one."""
    opened = open_office(TinyRun(tmp_path, [MANUAL | PEOPLE | {"retrain": False}], 2))
    yield opened
    leave(opened)


@pytest.fixture
def semi_office(tmp_path: Path) -> Iterator[Office]:
    """Two images of stage two, after a simulated round of two."""
    rounds: list[dict[str, Any]] = [
        MANUAL | {"images": 2, "retrain": False},
        SEMI | PEOPLE | {"retrain": False},
    ]
    opened = open_office(TinyRun(tmp_path, rounds, 4))
    yield opened
    leave(opened)
