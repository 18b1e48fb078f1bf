"""Settings of the whole suite: one thread a process, no deadlines, and Ctrl-C that is heard."""

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from databases import NO_SERVER, SERVER, postgres_schema

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("suite")

# A shell starts background jobs with SIGINT ignored, and our children inherit that: tests of Ctrl-C
# would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


_WITHOUT_SERVER = pytest.mark.skip(reason=NO_SERVER) if SERVER not in os.environ else ()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=_WITHOUT_SERVER)])
def tasks_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """`execution.tasks_url` of a run: None, so SQLite in its folder, or an empty PostgreSQL."""
    if request.param == "sqlite":
        yield None
    else:
        with postgres_schema() as url:
            yield url
