"""Commands for rounds that people annotate: serve their page, and say who may."""

from contextlib import closing
from typing import Annotated

import typer

from engine.cli_options import AsJson, RunUri, err, out, print_json


def annotate(
    folder: RunUri,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0: any that is free.", min=0, max=65535)
    ] = 8000,
) -> None:
    """Serve the page on which people answer the round that waits for them.

    Example: sa-engine annotate runs/mine --port 8080
    """
    from engine.config import frozen_config
    from engine.store import open_store
    from web.serve import require_page, serve

    def announce(address: str) -> None:
        out.print(f"annotate at {address}; stop with Ctrl-C", highlight=False)

    require_page()
    if any(mine.review_share for mine in frozen_config(open_store(folder)).rounds):
        say_if_nobody_reviews(folder)
    serve(open_store(folder), host=host, port=port, announce=announce)


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
        print_json(report.model_dump(mode="json"))
        return
    for line in audit_lines(report):
        out.print(line, highlight=False)
    if report.tasks.left:
        out.print(
            f"images that wait for a reviewer or manager: {report.tasks.left}; sa-engine annotate "
            f"{folder}",
            highlight=False,
        )


def say_if_nobody_reviews(folder: str) -> None:
    from engine.store import open_store
    from web.serve import accounts_of

    with closing(accounts_of(open_store(folder))) as accounts:
        if not accounts.can_review():
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
