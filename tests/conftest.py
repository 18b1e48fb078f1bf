"""Settings of the whole suite: one thread a process, no deadlines, and Ctrl-C that is heard."""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from databases import NO_SERVER, SERVER, postgres_schema
from faults import environment_here

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 * 2**20

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("suite")

# A shell starts background jobs with SIGINT ignored, and our children inherit that: tests of Ctrl-C
# would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Groups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.split("::")[0])

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _group(item.nodeid.split("::")[0]) != "ray")  # they take longest


@cache
def _group(file: str) -> str:
    """What one worker does: all that needs Ray, of which there is one; all that is done in a
    browser, whose rounds are made once; and any other file."""
    path = Path(__file__).parents[1] / file
    if "pytest.mark.ray" in path.read_text():
        return "ray"
    return "browser" if path.parent.name == "browser" else file


_WITHOUT_SERVER = pytest.mark.skip(reason=NO_SERVER) if SERVER not in os.environ else ()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=_WITHOUT_SERVER)])
def tasks_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """`execution.tasks_url` of a run: None, so SQLite in its folder, or an empty PostgreSQL."""
    if request.param == "sqlite":
        yield None
    else:
        with postgres_schema() as url:
            yield url


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["Cluster"]:
    """A head with two (nominal) CPUs, to which this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    # A short path: Ray's sockets lie below it, and their names have 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    Path("/tmp/ray").mkdir(exist_ok=True)  # it notes the address there, whatever temp_dir says
    with environment_here():
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "temp_dir": folder,
                "_system_config": {
                    # A lost node is noticed within seconds, not minutes.
                    "health_check_initial_delay_ms": 1000,
                    "health_check_period_ms": 1000,
                    "health_check_failure_threshold": 3,
                },
            },
        )
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
