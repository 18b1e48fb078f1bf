"""What a person sees of long work: a bar on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal."""


class Step(Protocol):
    def __call__(self, amount: int = 1) -> None: ...


class Progress:
    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """One line as it is: brackets in a path are no markup, and nothing is wrapped."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def of(self, what: str, total: int, done: int = 0) -> Iterator[Step]:
        """Within the block, call the yielded function once for each piece done."""
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with RichProgress(*columns, TimeElapsedColumn(), console=self.console) as bar:
                task = bar.add_task(what, total=total, completed=done)
                yield lambda amount=1: bar.advance(task, amount)
        else:
            yield _Lines(self, what, total, done)


class _Lines:
    def __init__(self, progress: Progress, what: str, total: int, done: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, done
        self._said = time.monotonic()

    def __call__(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._said >= PLAIN_SECONDS or self._done >= self._total:
            self._said = now
            self._progress.say(f"{self._what}: {self._done}/{self._total}")
