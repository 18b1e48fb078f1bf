"""What the commands share: where they print, and the arguments that several of them take."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from stages.records import StageName

PLAIN_WIDTH = 140
"""Columns of a table where there is no terminal to ask."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


out, err = _console(stderr=False), _console(stderr=True)

OutUri = Annotated[
    str, typer.Option("--out", help="Folder of the run: a path or a pyarrow.fs URI.")
]
RunUri = Annotated[str, typer.Argument(metavar="DIR", help="Folder of a run.")]
StageOption = Annotated[
    StageName | None, typer.Option("--stage", help="Rounds of this stage only.")
]
Checkpoint = Annotated[
    str, typer.Option(help="A shipped checkpoint's name, a checkpoint folder, or an official .pth.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
