"""cluster.yaml, checked without a cloud: by Ray's own validation, and against this project."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

# Private to Ray, and what `ray up` does first: when it moves, these checks have to follow.
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

PROJECT = Path(__file__).parents[1]
AWS = PROJECT / "cluster.yaml"


@pytest.fixture
def on_premise(tmp_path: Path) -> Path:
    """Made by the very command that cluster.yaml tells its reader to type."""
    found = re.search(r"^#\s+(sed .*) cluster\.yaml > onprem\.yaml$", AWS.read_text(), re.M)
    assert found
    made = subprocess.run([*shlex.split(found[1]), str(AWS)], capture_output=True, check=True)
    path = tmp_path / "onprem.yaml"
    path.write_bytes(made.stdout)
    return path


def test_ray_accepts_the_file() -> None:
    prepared = _prepare(AWS)
    types = prepared["available_node_types"]
    assert types[prepared["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["head"]["max_workers"] == 0
    assert types["gpu_worker"]["max_workers"] + types["cpu_worker"]["max_workers"] == 16


def test_ray_accepts_the_on_premise_variant(on_premise: Path) -> None:
    prepared = _prepare(on_premise)
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == len(prepared["provider"]["worker_ips"]) == 2
    assert "boto3" not in on_premise.read_text()


def test_both_variants_differ_in_nothing_but_the_machines(on_premise: Path) -> None:
    aws, local = _load(AWS), _load(on_premise)
    differing = {key for key in aws | local if aws.get(key) != local.get(key)}
    node_types = {"available_node_types", "head_node_type", "head_setup_commands", "max_workers"}
    assert differing == {"provider", "auth"} | node_types


def test_ray_start_knows_every_option_and_no_port_is_a_workers() -> None:
    config = _load(AWS)
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        command = config[part][-1].rpartition("; ")[2]
        options = start.make_context("ray start", shlex.split(command)[2:]).params
        ports = [value for name, value in options.items() if name.endswith("_port") and value]
        chosen = [int(port) for port in ports if int(port) not in (10002, 19999)]  # the defaults
        assert len(chosen) >= 6
        assert not [port for port in chosen if 10002 <= port <= 19999]


def test_everything_it_sends_exists_and_is_what_pip_needs() -> None:
    mounts = _load(AWS)["file_mounts"]
    sent = {Path(local) for local in mounts.values() if not local.startswith("~")}
    packages = _pyproject()["tool"]["setuptools"]["packages"]
    assert sent == {Path("README.md"), Path("pyproject.toml"), *map(Path, packages)}
    assert not [path for path in sent if not (PROJECT / path).exists()]
    assert all(remote.startswith("/home/ubuntu/") for remote in mounts)


def test_the_ray_it_installs_is_one_that_the_project_allows() -> None:
    installs = " ".join(_load(AWS)["setup_commands"])
    found = re.search(r'"ray\[default,serve,train\]==([\d.]+)"', installs)
    assert found
    requirements = [Requirement(text) for text in _pyproject()["project"]["dependencies"]]
    ray = next(requirement for requirement in requirements if requirement.name == "ray")
    assert found[1] in ray.specifier
    assert ray.extras == {"default", "serve", "train"}


def test_setup_commands_are_shell_that_parses() -> None:
    config = _load(AWS)
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    assert len(commands) >= 9
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def _load(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())
    assert isinstance(config, dict)
    return config


def _prepare(path: Path) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(_load(path))
    validate_config(prepared)
    return prepared


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())
