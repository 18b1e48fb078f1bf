"""Imports point one way: model <- stages <- engine <- web; and a few packages have few doors."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("model", "stages", "engine", "web")
TOP = "engine/cli*.py"
"""The command line stands above all layers."""
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

DOORS = {
    "ray": {"engine/ray_*.py", "engine/launch.py", "web/ray_serve.py"},
    "pyarrow": {
        "engine/corpus.py",
        "engine/dataset.py",
        "engine/ground_truth.py",
        "engine/manifest.py",
        "engine/shards.py",
        "engine/reading.py",
        "engine/store.py",
    },
    "pycocotools": {"stages/rle.py"},
    "sqlalchemy": {
        "engine/answers.py",
        "engine/database.py",
        "engine/drafts.py",
        "engine/effort.py",
        "engine/task_queries.py",
        "engine/task_results.py",
        "engine/task_tables.py",
        "engine/tasks.py",
        "web/accounts.py",
    },
    "matplotlib": {"engine/figures.py"},
    "typer": {TOP},
}
"""Packages, and the only files that may import them."""


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports anywhere, within functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 40
    assert {"torch", "numpy"} <= set(imported_packages(ROOT / "stages/predictor.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_no_import_points_to_a_layer_further_right(layer: str) -> None:
    forbidden = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"benchmarks", "tests"}
    wrong = {
        name_of(path): found
        for path in SOURCES
        if name_of(path).startswith(f"{layer}/")
        and not path.match(TOP)
        and (found := forbidden & set(imported_packages(path)))
    }
    assert wrong == {}


@pytest.mark.parametrize("package", DOORS)
def test_a_package_is_imported_only_through_its_doors(package: str) -> None:
    wrong = [
        name_of(path)
        for path in SOURCES
        if package in imported_packages(path)
        and not any(path.match(pattern) for pattern in DOORS[package])
    ]
    assert wrong == []


def test_the_model_needs_no_more_than_torch_and_a_few_small_packages() -> None:
    needed = {
        package
        for path in SOURCES
        if name_of(path).startswith("model/")
        for package in imported_packages(path)
    }
    ours = needed - sys.stdlib_module_names - {"model"}
    assert ours <= {"torch", "numpy", "PIL", "pydantic", "safetensors"}


def test_stages_know_no_files_no_clock_and_no_global_randomness() -> None:
    outside = {"datetime", "io", "os", "pathlib", "random", "shutil", "subprocess", "time"}
    wrong = {
        name_of(path): found
        for path in SOURCES
        if name_of(path).startswith("stages/") and (found := outside & set(imported_packages(path)))
    }
    assert wrong == {}
