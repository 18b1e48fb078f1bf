"""Draw the log of a training of `benchmarks.seed_checkpoint`: what it lost, and what it could do.

python -m benchmarks.seed_figure runs/seed/log.jsonl docs/training.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LEARNING = {
    "pyramid_iou": "embeddings, pyramid",
    "neck_iou": "embeddings, neck",
    "miou_first": "decoder, first answer",
    "miou_last": "decoder, after corrections",
}
LOSSES = {
    "loss": "pixel embeddings, alone",
    "dice_loss": "dice",
    "embedding_loss": "pixel embeddings",
    "iou_loss": "IoU head",
}
HELD_OUT = {"oracle": "best of three, 1 click", "1": "1 click", "5": "5 clicks"}
COLOURS = ("#2f6db3", "#d9822b", "#3b8f5a", "#8a4fa3")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    lines = [json.loads(line) for line in options.log.read_text().splitlines()]
    training_figure([line for line in lines if "phase" in line]).savefig(options.picture, dpi=80)


def training_figure(lines: Sequence[dict[str, Any]]) -> Figure:
    """Training IoU, losses and held-out figures over all steps, phase after phase."""
    starts: dict[str, int] = {}
    end = 0
    for line in lines:
        starts.setdefault(line["phase"], end)
        end = max(end, starts[line["phase"]] + line["step"])
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    iou, loss, held_out = figure.subplots(1, 3)
    _curves(iou, lines, starts, LEARNING, "IoU of training answers")
    _curves(loss, lines, starts, LOSSES, "losses")
    loss.set_yscale("log")
    keys = {key for line in lines for key in line}
    folders = sorted(key.removesuffix("_oracle") for key in keys if key.endswith("_oracle"))
    for folder, style in zip(folders, ("o-", "s--", "^:"), strict=False):
        names = {f"{folder}_{key}": f"{folder}, {text}" for key, text in HELD_OUT.items()}
        _curves(held_out, lines, starts, names, "held-out mIoU", style)
    for axes in (iou, loss, held_out):
        for phase, start in starts.items():
            axes.axvline(start, color="#c5ccd3", linewidth=1)
            axes.text(start, 1.0, f" {phase}", transform=axes.get_xaxis_transform(), fontsize=7)
        axes.set_xlabel("steps")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    return figure


def _curves(
    axes: Axes,
    lines: Sequence[dict[str, Any]],
    starts: dict[str, int],
    names: dict[str, str],
    title: str,
    style: str = "-",
) -> None:
    for (key, label), colour in zip(names.items(), COLOURS, strict=False):
        with_key = [line for line in lines if key in line]
        if with_key:
            steps = [starts[line["phase"]] + line["step"] for line in with_key]
            values = [line[key] for line in with_key]
            axes.plot(steps, values, style, color=colour, label=label, linewidth=1.2, markersize=4)
    axes.set_title(title, fontsize=10, pad=14)


if __name__ == "__main__":
    main()
