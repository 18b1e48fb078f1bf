"""What takes seconds to make and serves many tests: one finished run."""

import pytest

from tiny_runs import AUTOMATIC, MANUAL, SEMI, TinyRun


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of every stage, in one process from its start to its end."""
    rounds = [{**MANUAL, "images": 4}, {**SEMI, "images": 2, "retrain": False}, AUTOMATIC]
    changes = {"retraining": {"training": {"steps": 24}, "save_every_steps": 4}}
    run = TinyRun(tmp_path_factory.mktemp("undisturbed"), rounds, num_images=8, changes=changes)
    run.run()
    return run
