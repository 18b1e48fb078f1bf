"""What takes seconds to start and serves many tests: one Ray, and one finished run."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from faults import environment_here
from tiny_runs import AUTOMATIC, MANUAL, SEMI, TinyRun

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 * 2**20


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of every stage, in one process from its start to its end."""
    rounds = [{**MANUAL, "images": 4}, {**SEMI, "images": 2, "retrain": False}, AUTOMATIC]
    changes = {"retraining": {"training": {"steps": 24}, "save_every_steps": 4}}
    run = TinyRun(tmp_path_factory.mktemp("undisturbed"), rounds, num_images=8, changes=changes)
    run.run()
    return run


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["Cluster"]:
    """A head with two (nominal) CPUs, to which this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    # A short path: Ray's sockets lie below it, and their names have 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
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
