"""Commands about checkpoints: use one on images, train one, evaluate one."""

from pathlib import Path
from typing import Annotated

import typer

from engine.cli_options import AsJson, Checkpoint, RunUri, err, out, print_json


def generate(
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for JSON and pictures.")],
    checkpoint: Checkpoint = "sa-tiny",
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper, official, or a config whose fully_automatic is taken; without it, "
            "photographs for the shipped checkpoint, the same without rescore and above a "
            "predicted IoU of 0.375 for what runs train from it, official for others."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the preset, such as points_per_side=16."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda on a machine with a GPU.")] = "cpu",
) -> None:
    """Automatic masks of single images: SA-1B JSON and an overlay PNG for each.

    Example: sa-engine generate photo.jpg --out masks --set pred_iou_thresh=0.3
    """
    from engine.generate import generate_masks

    for line in generate_masks(
        images, checkpoint, folder, preset=preset, settings=settings or [], device=device
    ):
        out.print(line, markup=False, highlight=False)


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


def evaluate(
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    annotations: Annotated[str, typer.Option(help="COCO-style JSON.")],
    checkpoint: Checkpoint = "sa-tiny",
    split: Annotated[str | None, typer.Option(help="Images of this `split` only.")] = None,
    min_votes: Annotated[int, typer.Option(help="Least `votes` of a mask.", min=0)] = 0,
    min_area: Annotated[int, typer.Option(help="Least pixels of a mask.", min=0)] = 0,
    max_images: Annotated[int | None, typer.Option(help="The first by hash.", min=1)] = None,
    zoom_in: Annotated[
        bool,
        typer.Option("--zoom-in", help="Look at small objects twice, the second time enlarged."),
    ] = False,
    snap: Annotated[
        bool | None,
        typer.Option(
            help="Make masks of the image's superpixels, as annotators have it with snap; when not "
            "said, for the shipped checkpoint and those of its shape, as runs train. What runs "
            "themselves report is --no-snap: the model alone, which they train."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda on a machine with a GPU.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """mIoU against true masks of what 1, 3 and 5 clicks are answered.

    Example: sa-engine evaluate --images images --annotations instances.json --min-area 100
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
    scores = evaluate_source(
        source, checkpoint, Progress(err), device=device, zoom_in=zoom_in, snap=snap
    )
    figures = scores.model_dump(mode="json")
    if as_json:
        print_json(figures)
    else:
        for name, value in figures.items():
            out.print(f"{name:24}{value:.4f}" if isinstance(value, float) else f"{name:24}{value}")
