"""The wait for people."""

from typing import Any

import pytest

from engine import stage_work
from engine.errors import StorageError
from engine.stage_work import _left_at_last


def test_a_queue_that_is_away_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody: Any = None
    now, asked = 0.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def left(*_: object) -> tuple[int, int]:
        nonlocal asked
        asked += 1
        if asked <= away_for:
            raise StorageError("the annotation queue refused")
        return 3, 1

    monkeypatch.setattr("engine.stage_work.time.sleep", sleep)
    monkeypatch.setattr("engine.stage_work.time.monotonic", lambda: now)
    monkeypatch.setattr(stage_work, "_left", left)
    away_for = 10
    assert _left_at_last(nobody, nobody, 0) == (3, 1)
    away_for = 10_000
    with pytest.raises(StorageError):
        _left_at_last(nobody, nobody, 0)
    assert now > stage_work.QUEUE_AWAY_SECONDS
