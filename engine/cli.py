"""The command line: sa-engine run | launch | status | stats | verify | generate | train | ...

Heavy modules are imported by the command that needs them, so that `--help` answers at once.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from engine.cli_annotation import annotate, annotators, audit, say_if_nobody_reviews
from engine.cli_model import evaluate, generate, train
from engine.cli_options import AsJson, OutUri, RunUri, StageOption, err, out, print_json
from engine.errors import EngineError

USER_ERROR, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Typer would make a silent exit status of Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise typer.Abort from interrupt


app = typer.Typer(
    cls=_Commands,
    help="Build segmentation datasets in the style of SA-1B.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Every error that a user can mend is one line and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not err.is_terminal:  # a terminal has progress bars instead
        logging.getLogger("engine").setLevel(logging.INFO)
    try:
        status = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        err.print("stopped; the same command goes on from here")
        sys.exit(INTERRUPTED)
    except EngineError as error:
        _fail(str(error))
    except OSError as error:  # a path that a command was given
        _fail(f"{error.filename or 'storage'}: {error.strerror or error}")
    except typer.TyperException as error:
        _fail(f"{error.format_message()} (see --help)")
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    err.print(f"error: {' '.join(message.split())}", style="red", markup=False, highlight=False)
    sys.exit(USER_ERROR)


@app.command()
def run(
    folder: OutUri,
    config: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a shipped one.")
    ] = "demo",
    images: Annotated[
        str | None,
        typer.Option(help="A folder, text list or COCO-style JSON instead of the config's images."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the config, such as images_per_shard=16."),
    ] = None,
    stage: StageOption = None,
) -> None:
    """Run, or go on with, all rounds of a config. The default is the demo.

    Example: sa-engine run my.yaml --out runs/mine --set seed=1

    Example: sa-engine run --images photographs --out runs/photographs
    """
    from engine.config import load_config, with_images
    from engine.layout import shards_folder
    from engine.machines import LocalMachines, Machines
    from engine.progress import Progress
    from engine.results import rounds_table, write_report
    from engine.rounds import run_rounds
    from engine.settings import with_settings
    from engine.sources import source_from_path
    from engine.store import open_store
    from engine.uris import child_uri

    loaded, store = load_config(config), open_store(folder)
    if images is not None:
        loaded = with_images(loaded, source_from_path(images))
    loaded = with_settings(loaded, settings or [])
    machines: Machines
    if loaded.execution.executor == "ray":
        from engine.ray_machines import RayMachines

        machines = RayMachines(loaded.execution)
    else:
        machines = LocalMachines()
    rounds = run_rounds(store, loaded, Progress(err), machines, stage=stage)
    pictures = write_report(store, loaded, rounds)
    out.print(rounds_table(store, loaded, rounds))
    for index, _ in rounds:
        shards = child_uri(store.uri, shards_folder(loaded.round_folder(index)))
        out.print(f"shards    {shards}", highlight=False)
    for picture in pictures:
        out.print(f"picture   {child_uri(store.uri, picture)}", highlight=False)


@app.command()
def launch(
    address: Annotated[str, typer.Option(help="The cluster's dashboard, http://HEAD:8265.")],
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a shipped one.")
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--out", help="Folder of the run, as the cluster reaches it.")
    ] = None,
    stage: StageOption = None,
    detach: Annotated[bool, typer.Option(help="Submit, and do not follow the log.")] = False,
    follow: Annotated[str | None, typer.Option(help="Follow this job instead.")] = None,
    stop: Annotated[str | None, typer.Option(help="Stop this job instead.")] = None,
) -> int:
    """Run a config on a cluster as a Ray job: prints its id, follows it, stops it.

    Start from a copy of configs/full.yaml, and edit what says CHANGE.

    Example: sa-engine launch my.yaml --out s3://bucket/run --address http://head:8265
    """
    from engine import launch as jobs
    from engine.config import load_config

    if stop is not None:
        ended = jobs.stop(address, stop)
        out.print(f"{stop} is stopped" if ended else f"{stop} had ended before")
        return 0
    if follow is None:
        if config is None or folder is None:
            raise EngineError("launch needs CONFIG and --out, or --follow ID, or --stop ID")
        if load_config(config).execution.executor != "ray":
            raise EngineError(f"{config} says execution.executor: local; a cluster needs ray")
        follow = jobs.submit(config, folder, address, stage=stage)
        out.print(follow)
        if detach:
            return 0
    return jobs.follow(address, follow, lambda line: out.print(line, markup=False, highlight=False))


@app.command()
def status(folder: RunUri) -> None:
    """Rounds, shards done, given up and left, masks, rate and time left; tasks where their queue
    can be reached.

    Example: sa-engine status runs/demo
    """
    from engine.status import corpus_lines, quality_lines, run_status, status_table, with_tasks
    from engine.store import open_store

    store = open_store(folder)
    rounds = run_status(store)
    out_of_reach = ""
    try:
        rounds = with_tasks(store, rounds)
    except EngineError as error:  # which is no reason to say nothing of the shards
        out_of_reach = f"tasks unknown, their queue is out of reach: {' '.join(str(error).split())}"
    for line in corpus_lines(store):
        out.print(line, highlight=False)
    out.print(status_table(rounds))
    if out_of_reach:
        out.print(out_of_reach, markup=False, highlight=False)
    for line in quality_lines(rounds):
        out.print(line, markup=False, highlight=False)
    if any(status.reviews.left for status in rounds):
        say_if_nobody_reviews(folder)


@app.command()
def stats(
    folder: RunUri,
    round_index: Annotated[int | None, typer.Option("--round", help="This round only.")] = None,
    stage: StageOption = None,
    as_json: AsJson = False,
    figure: Annotated[Path | None, typer.Option(help="Also draw them into this PNG.")] = None,
) -> None:
    """Statistics of the shards published so far, from manifests and, of unsealed rounds, footers.

    Example: sa-engine stats runs/demo --stage fully_automatic --json
    """
    from engine.figures import figure_bytes, stats_figure
    from engine.report import rounds_table, stats_table
    from engine.stats import Stats
    from engine.status import run_status
    from engine.store import open_store

    rounds = [
        (f"{status.index} {status.stage}", status.stats)
        for status in run_status(open_store(folder))
        if round_index in (None, status.index) and stage in (None, status.stage)
    ]
    if not rounds:
        raise EngineError(f"{folder} has no such round; see sa-engine status {folder}")
    total = Stats.total(stats for _, stats in rounds)
    if figure is not None:
        figure.write_bytes(figure_bytes(stats_figure(rounds, title=folder)))
    if as_json:
        parts = {label: stats.model_dump(mode="json") for label, stats in rounds}
        print_json({"rounds": parts, "total": total.model_dump(mode="json")})
    else:
        out.print(rounds_table(rounds))
        out.print(stats_table(total))


@app.command()
def verify(folder: RunUri) -> int:
    """Check every shard, manifest and decoder. Exit status 1 and the broken ones' names, or 0.

    Example: sa-engine verify runs/demo
    """
    from engine.rounds import run_faults
    from engine.store import open_store

    found = 0
    for line in run_faults(open_store(folder)):
        found += 1
        out.print(line, markup=False, highlight=False)
    out.print(f"{found} faults" if found else "all shards, manifests and decoders are whole")
    return 1 if found else 0


@app.command()
def export(
    folder: RunUri,
    to: Annotated[str, typer.Option("--out", help="Folder to write.")],
    form: Annotated[str, typer.Option("--format", help="sa1b or coco.")],
    stage: StageOption = None,
) -> None:
    """Write the sealed rounds of a run as SA-1B files or one COCO-style JSON.

    Example: sa-engine export runs/mine --format coco --out exported --stage fully_automatic
    """
    from engine.export import export_run
    from engine.store import open_store

    for line in export_run(open_store(folder), open_store(to), form, stage):
        out.print(line, highlight=False)


for command in (generate, train, evaluate, annotate, audit):
    app.command()(command)
app.add_typer(annotators, name="annotators")

if __name__ == "__main__":
    main()
