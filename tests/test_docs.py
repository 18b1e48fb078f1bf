"""What the documentation says is true: its paths exist, its commands parse, its snippets run."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from engine.cli import app
from tiny_runs import AUTOMATIC, MANUAL, SEMI, TinyRun

PROJECT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for path in (*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"))
)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group

OUR_PATH = re.compile(r"\b(?:benchmarks|configs|docs|engine|model|stages|tests|web)/[\w./-]*\w")
LINK = re.compile(r"\]\(([^)#\s]+)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND_LINE = re.compile(r"^ *(?:\.venv/bin/)?sa-engine (.+)$", re.MULTILINE)
MENTION = re.compile(r"`sa-engine (\w+)((?: --[\w-]+)*)`")
OF_A_MACHINE = re.compile(r"(?:/home|/root|/Users|/work|/tmp)/[\w.-]+")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all stages."""
    rounds = [MANUAL, SEMI | {"retrain": False}, AUTOMATIC | {"images": 1}]
    run = TinyRun(
        tmp_path_factory.mktemp("docs") / "tiny",
        rounds=[{"images": 2} | planned for planned in rounds],
        num_images=5,
        held_out=1,
        changes={"evaluation": {"max_masks_per_image": 1}, "retraining": {"save_every_steps": 1}},
    )
    run.run()
    return run.out


@pytest.mark.parametrize("page", PAGES)
def test_every_path_a_page_names_exists(page: str) -> None:
    text = _read(page)
    linked = {(PROJECT / page).parent / to for to in LINK.findall(text) if "://" not in to}
    named = {PROJECT / path for path in OUR_PATH.findall(_without_links(text))}
    assert not sorted(str(path) for path in linked | named if not path.exists())


@pytest.mark.parametrize("page", PAGES)
def test_every_command_a_page_shows_parses(page: str) -> None:
    text = _read(page)
    for line in COMMAND_LINE.findall(text):
        _parse(line)
    for name, options in MENTION.findall(text):
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert set(options.split()) <= known


def test_every_example_in_the_help_parses() -> None:
    for name, command in COMMANDS.items():
        examples = re.findall(r"Example: sa-engine (.+)", command.help)
        assert examples, f"sa-engine {name} --help shows no example"
        for example in examples:
            assert example.split()[0] == name
            _parse(example)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_folder_of_somebodys_machine(page: str) -> None:
    on_the_cluster = ("/tmp/ray",)
    assert set(OF_A_MACHINE.findall(_read(page))) <= set(on_the_cluster)


def test_decisions_are_numbered_and_of_one_form() -> None:
    pages = sorted((PROJECT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in pages] == list(range(1, len(pages) + 1))
    for path in pages:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: ")
        parts = [text.find(f"**{part}.**") for part in ("Context", "Decision", "Consequences")]
        assert -1 < parts[0] < parts[1] < parts[2]


def test_snippets_of_the_format_page_run_on_a_run(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder)
    snippets = [code for kind, code in FENCE.findall(_read("docs/format.md")) if kind == "python"]
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "docs/format.md", "exec"), {})


def test_format_page_lists_every_file_of_a_run_and_no_other(run_folder: Path) -> None:
    table = _read("docs/format.md").partition("## The run's folder")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    patterns = {path: _pattern(path) for path in listed}
    met = set()
    for file in (path for path in run_folder.rglob("*") if path.is_file()):
        name = file.relative_to(run_folder).as_posix()
        matching = [path for path, pattern in patterns.items() if pattern.fullmatch(name)]
        assert matching, f"docs/format.md does not list {name}"
        met.update(matching)
    # No image failed, no source was embedded, nobody annotated, no training is under way, and
    # reports are the command line's.
    others = {
        "rounds/ROUND-STAGE/shards-alone/",
        "rounds/ROUND-STAGE/proposals-alone/",
        "sources/NAME/",
        "training/NAME/",
        "report/NAME.png",
    }
    assert set(listed) - met == others


def _read(page: str) -> str:
    return (PROJECT / page).read_text()


def _without_links(text: str) -> str:
    return re.sub(r"\]\([^)]*\)", "]", text)


def _parse(line: str) -> None:
    """Raises what the command line would say of it; runs nothing."""
    name, *arguments = shlex.split(line, comments=True)
    with COMMANDS[name].make_context(name, arguments):
        pass


def _pattern(path: str) -> re.Pattern[str]:
    """Words in capitals stand for any name, a slash at the end for all that lies below."""
    pattern = re.sub(r"[A-Z]+", "[^/]+", path.replace(".", r"\."))
    return re.compile(f"{pattern}.*" if path.endswith("/") else pattern)
