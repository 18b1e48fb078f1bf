"""Runs so small that a test can watch one from its start to its end."""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from engine import cli
from engine.config import EngineConfig, merged
from engine.machines import LocalMachines, Machines
from engine.manifest import load_plan, published_shards
from engine.progress import Progress
from engine.rounds import RoundOutcome, run_rounds
from engine.shards import read_records
from engine.store import LocalStore
from fakes import save_tiny_sam
from stages.records import ImageRecord, StageName

SIDE = 64
MANUAL = {"stage": "assisted_manual", "source": "drawn"}
SEMI = {"stage": "semi_automatic", "source": "drawn"}
AUTOMATIC = {"stage": "fully_automatic", "source": "drawn", "retrain": False}

# Thresholds that let the masks of random weights pass, and as little work as makes sense.
_LENIENT = {"pred_iou_thresh": -100, "stability_score_thresh": 0.0, "min_mask_region_area": 0}
_BASE: dict[str, Any] = {
    "name": "tiny",
    "corpus": {"held_out_fraction": 0.0},
    "images_per_shard": 2,
    "simulated_annotator": {"max_objects": 2, "max_clicks": 2},
    "fully_automatic": {"points_per_side": 4, "crop_n_layers": 0, "filters": _LENIENT},
    "semi_automatic": {"detector_score_thresh": 0.0, "filters": _LENIENT},
    "retraining": {
        "training": {
            "freeze_image_encoder": True,
            "steps": 6,
            "batch_images": 2,
            "masks_per_image": 2,
            "num_corrections": 1,
            "num_repeats": 1,
        },
        "detector_training": {"steps": 2, "batch_images": 2},
        "save_every_steps": 2,
    },
    "execution": {"workers": 1, "train_threads": 1, "lease_seconds": 2},
}


@dataclass(frozen=True)
class TinyRun:
    """A run over drawn images, in a folder of its own."""

    folder: Path
    rounds: Sequence[dict[str, Any]]
    num_images: int
    held_out: int = 0
    """Further images, to evaluate on."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the configuration."""

    def __post_init__(self) -> None:
        if not self.images.exists():
            draw_images(self.images, self.num_images, self.held_out)
            save_tiny_sam(str(self.folder / "tiny"))

    @property
    def images(self) -> Path:
        return self.folder / "drawn"

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.out)

    @property
    def config(self) -> EngineConfig:
        given = {
            "checkpoint": str(self.folder / "tiny"),
            "sources": [
                {
                    "kind": "coco",
                    "name": "drawn",
                    "annotations": str(self.images / "instances.json"),
                }
            ],
            "rounds": list(self.rounds),
        }
        return EngineConfig.model_validate(merged(_BASE | given, self.changes))

    def anew(self, folder: Path, **execution: object) -> "TinyRun":
        """The same from the beginning, elsewhere."""
        changes = merged(self.changes, {"execution": execution})
        return replace(self, folder=folder, changes=changes)

    def write_config(self) -> str:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        return str(path)

    def image(self, number: int) -> Path:
        return self.images / "images" / f"{number:03d}.png"

    def run(
        self, machines: Machines | None = None, stage: StageName | None = None
    ) -> list[tuple[int, RoundOutcome]]:
        """In this process; the default is on local machines."""
        progress = Progress(Console(file=StringIO()))
        machines = LocalMachines() if machines is None else machines
        return run_rounds(self.store, self.config, progress, machines, stage=stage)

    def planned(self, index: int) -> list[int]:
        return load_plan(self.store, self.config.round_folder(index)).image_ids.tolist()

    def records(self, index: int) -> list[ImageRecord]:
        """All rows of a round, shard after shard."""
        shards = f"{self.config.round_folder(index)}/shards"
        return [
            record
            for shard in sorted(published_shards(self.store, shards))
            for record in read_records(self.store, f"{shards}/shard-{shard:06d}.parquet")
        ]

    def content(self) -> list[list[ImageRecord]]:
        """All rows by round, but for what differs from one run to the next: times and places."""
        return [
            [r.model_copy(update={"worker_seconds": 0.0, "uri": ""}) for r in self.records(index)]
            for index in range(len(self.rounds))
        ]

    def assert_whole(self) -> None:
        """Every image of every plan has exactly one row, and `sa-engine verify` finds no fault."""
        for index in range(len(self.rounds)):
            assert [record.image_id for record in self.records(index)] == self.planned(index)
        assert cli.verify(str(self.out)) == 0


def draw_images(folder: Path, num_images: int, held_out: int = 0) -> None:
    """Noise with two plain rectangles, and a COCO-style JSON that knows them."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(num_images + held_out):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for left in (4, 36):
            x0, y0 = left + rng.integers(0, 6), rng.integers(4, 24)
            x1, y1 = x0 + rng.integers(12, 20), y0 + rng.integers(16, 32)
            pixels[y0:y1, x0:x1] = rng.integers(100, 256, 3)
            outline = [x0, y0, x1, y0, x1, y1, x0, y1]
            annotations.append(
                {"image_id": number, "segmentation": [[float(value) for value in outline]]}
            )
        name = f"{number:03d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        split = "train" if number < num_images else "val"
        images.append({"id": number, "file_name": name, "split": split})
    content = {"images": images, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(content))


def sa_engine(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command line in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["sa-engine", *arguments])
    engine_log = logging.getLogger("engine")
    level = engine_log.level
    with pytest.raises(SystemExit) as ended:
        cli.main()
    engine_log.setLevel(level)
    return int(ended.value.code or 0)
