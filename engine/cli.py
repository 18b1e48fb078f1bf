"""The command line: sa-engine run | launch | status | stats | verify | generate | train | ...

Heavy modules are imported by the command that needs them, so that `--help` answers at once.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from engine.errors import EngineError
from stages.records import StageName

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
    stage: StageOption = None,
) -> None:
    """Run, or go on with, all rounds of a config. The default is the demo.

    Example: sa-engine run my.yaml --out runs/mine

    Example: sa-engine run --images photographs --out runs/photographs
    """
    from engine.config import load_config, with_images
    from engine.layout import shards_folder
    from engine.machines import LocalMachines, Machines
    from engine.progress import Progress
    from engine.results import rounds_table, write_report
    from engine.rounds import run_rounds
    from engine.sources import source_from_path
    from engine.store import open_store
    from engine.uris import child_uri

    loaded, store = load_config(config), open_store(folder)
    if images is not None:
        loaded = with_images(loaded, source_from_path(images))
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

    Example: sa-engine launch full.yaml --out s3://bucket/run --address http://head:8265
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
    """Rounds, shards done, given up and left, masks, rate and time left.

    Example: sa-engine status runs/demo
    """
    from engine.status import corpus_lines, quality_lines, run_status, status_table
    from engine.store import open_store

    store = open_store(folder)
    rounds = run_status(store)
    for line in corpus_lines(store):
        out.print(line, highlight=False)
    out.print(status_table(rounds))
    for line in quality_lines(rounds):
        out.print(line, markup=False, highlight=False)
    if any(status.reviews.left for status in rounds):
        _say_if_nobody_reviews(folder)


@app.command()
def stats(
    folder: RunUri,
    round_index: Annotated[int | None, typer.Option("--round", help="This round only.")] = None,
    stage: StageOption = None,
    as_json: AsJson = False,
    figure: Annotated[Path | None, typer.Option(help="Also draw them into this PNG.")] = None,
) -> None:
    """Statistics of the shards published so far, from their footers.

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
        _print_json({"rounds": parts, "total": total.model_dump(mode="json")})
    else:
        out.print(rounds_table(rounds))
        out.print(stats_table(total))


@app.command()
def verify(folder: RunUri) -> int:
    """Check every shard and manifest. Exit status 1 and the names of the broken ones, or 0.

    Example: sa-engine verify runs/demo
    """
    from engine.config import frozen_config
    from engine.manifest import broken_files
    from engine.store import open_store

    store = open_store(folder)
    config = frozen_config(store)
    broken = [
        line
        for index in range(len(config.rounds))
        for line in broken_files(store, config.round_folder(index))
    ]
    for line in broken:
        out.print(line, markup=False, highlight=False)
    out.print(f"{len(broken)} faults" if broken else "all shards and manifests are whole")
    return 1 if broken else 0


@app.command()
def generate(
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for JSON and pictures.")],
    checkpoint: Checkpoint = "sa-tiny",
    preset: Annotated[str, typer.Option(help="paper or official.")] = "official",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the preset, such as points_per_side=16."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda on a machine with a GPU.")] = "cpu",
) -> None:
    """Automatic masks of single images: SA-1B JSON and an overlay PNG for each.

    Example: sa-engine generate photo.jpg --out masks --set pred_iou_thresh=0.8
    """
    from engine.generate import automatic_config, generate_masks

    config = automatic_config(preset, settings or [])
    for line in generate_masks(images, checkpoint, config, folder, device=device):
        out.print(line, markup=False, highlight=False)


@app.command()
def train(
    folder: RunUri,
    name: Annotated[str, typer.Option(help="Of the new checkpoint, under DIR/checkpoints.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Train from this one instead of the run's last.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the config's.", min=1)] = None,
) -> None:
    """One retraining over all sealed rounds of a run, resumed when it was stopped.

    Example: sa-engine train runs/mine --name longer --steps 5000
    """
    from engine.rounds import train_once
    from engine.store import open_store

    path = train_once(open_store(folder), name, checkpoint=checkpoint, steps=steps)
    out.print(f"{folder}/{path}", highlight=False)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    annotations: Annotated[str, typer.Option(help="COCO-style JSON.")],
    split: Annotated[str | None, typer.Option(help="Images of this `split` only.")] = None,
    min_votes: Annotated[int, typer.Option(help="Least `votes` of a mask.", min=0)] = 0,
    min_area: Annotated[int, typer.Option(help="Least pixels of a mask.", min=0)] = 0,
    max_images: Annotated[int | None, typer.Option(help="The first by hash.", min=1)] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda on a machine with a GPU.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """mIoU of a checkpoint against true masks after 1, 3 and 5 clicks.

    Example: sa-engine evaluate --checkpoint sa-tiny --images images --annotations instances.json
    """
    from engine.evaluation import evaluate_source
    from engine.progress import Progress
    from engine.sources import CocoSource

    source = CocoSource(
        name="evaluated",
        annotations=annotations,
        images=images,
        split=split,
        min_votes=min_votes,
        min_area=min_area,
        max_images=max_images,
    )
    scores = evaluate_source(source, checkpoint, Progress(err), device=device)
    figures = scores.model_dump(mode="json")
    if as_json:
        _print_json(figures)
    else:
        for name, value in figures.items():
            out.print(f"{name:22}{value:.4f}" if isinstance(value, float) else f"{name:22}{value}")


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


@app.command()
def annotate(
    folder: RunUri,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve the page on which people answer the round that waits for them.

    Example: sa-engine annotate runs/mine --port 8080
    """
    from engine.config import frozen_config
    from engine.store import open_store
    from web.serve import serve

    if any(mine.review_share for mine in frozen_config(open_store(folder)).rounds):
        _say_if_nobody_reviews(folder)
    out.print(f"annotate at http://{host}:{port}; stop with Ctrl-C", highlight=False)
    serve(open_store(folder), host=host, port=port)


@app.command()
def audit(
    folder: RunUri,
    round_index: Annotated[int, typer.Option("--round", help="A sealed automatic round.")],
    images: Annotated[int, typer.Option(help="How many; the paper took 500.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Of the sample.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Have people correct a sample of automatic masks, and report how few needed it.

    Prepares the tasks; once somebody has done them, the same command prints the report.

    Example: sa-engine audit runs/mine --round 2 --images 100
    """
    from engine.audit import audit_lines, audit_report, prepare_audit
    from engine.config import frozen_config
    from engine.progress import Progress
    from engine.run import open_queue
    from engine.store import open_store

    store = open_store(folder)
    config = frozen_config(store)
    queue = open_queue(store, config)
    try:
        prepare_audit(
            store,
            config,
            queue,
            Progress(err),
            round_index=round_index,
            num_images=images,
            seed=seed,
        )
        report = audit_report(queue, round_index)
    finally:
        queue.close()
    if as_json:
        _print_json(report.model_dump(mode="json"))
        return
    for line in audit_lines(report):
        out.print(line, highlight=False)
    if report.tasks.left:
        out.print(
            f"{report.tasks.left} images wait for a reviewer or manager: sa-engine annotate "
            f"{folder}",
            highlight=False,
        )


def _say_if_nobody_reviews(folder: str) -> None:
    from engine.store import open_store
    from web.serve import accounts_of

    if not accounts_of(open_store(folder)).can_review():
        err.print(
            f"reviews of {folder} are wanted and nobody may review: sa-engine annotators add "
            f"{folder} NAME --role reviewer",
            markup=False,
            highlight=False,
        )


annotators = typer.Typer(
    help="Who may annotate a run.\n\nExample: sa-engine annotators add runs/mine Ada",
    no_args_is_help=True,
)
app.add_typer(annotators, name="annotators")
AnnotatorName = Annotated[str, typer.Argument(metavar="NAME", help="How masks will name them.")]


@annotators.command("add")
def add_annotator(
    folder: RunUri,
    name: AnnotatorName,
    role: Annotated[str, typer.Option(help="annotator, reviewer or manager.")] = "annotator",
) -> None:
    """Let somebody in, and print their token, once. Adding them again replaces it.

    Example: sa-engine annotators add runs/mine Ada --role manager
    """
    from engine.store import open_store
    from web.accounts import Role
    from web.serve import accounts_of

    if role not in list(Role):
        raise typer.BadParameter(f"{role!r}; expected {', '.join(Role)}", param_hint="--role")
    token = accounts_of(open_store(folder)).add(name, Role(role))
    out.print(token, highlight=False, markup=False)


@annotators.command("remove")
def remove_annotator(folder: RunUri, name: AnnotatorName) -> None:
    """Take somebody's token away and end their sessions; what they made stays.

    Example: sa-engine annotators remove runs/mine Ada
    """
    from engine.store import open_store
    from web.serve import accounts_of

    accounts_of(open_store(folder)).remove(name)


@annotators.command("list")
def list_annotators(folder: RunUri) -> None:
    """Names and roles.

    Example: sa-engine annotators list runs/mine
    """
    from engine.store import open_store
    from web.serve import accounts_of

    for account in accounts_of(open_store(folder)).all():
        out.print(f"{account.name}\t{account.role}", highlight=False, markup=False)


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
