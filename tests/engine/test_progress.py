import io

import pytest
from rich.console import Console

import engine.progress
from engine.progress import Progress


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(engine.progress, "time", clock)
    return clock


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(clock: Clock) -> None:
    said = io.StringIO()
    progress = Progress(Console(file=said))
    with progress.of("shards of round 1", total=50, done=10) as step:
        for _ in range(20):
            clock.now += 1.0
            step()
        step(20)
    assert said.getvalue().splitlines() == [
        "shards of round 1: 20/50",
        "shards of round 1: 30/50",
        "shards of round 1: 50/50",
    ]


def test_on_a_terminal_there_is_a_bar() -> None:
    said = io.StringIO()
    progress = Progress(Console(file=said, force_terminal=True, width=80))
    with progress.of("shards", total=3) as step:
        step()
        step(2)
    assert "shards" in said.getvalue()
    assert "3/3" in said.getvalue()


def test_what_is_said_is_not_taken_for_markup_nor_wrapped() -> None:
    said = io.StringIO()
    text = f"run demo: /data/[bold]/[/run]/{'long/' * 30}"
    Progress(Console(file=said, width=40)).say(text)
    assert said.getvalue() == text + "\n"
