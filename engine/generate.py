"""Automatic masks of single images, without a run: SA-1B's JSON and a picture for each."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from engine.config import describe, load_config, merged
from engine.context import load_run_checkpoint
from engine.errors import ConfigError, EngineError, StorageError, UnreadableImageError
from engine.export import sa1b_annotations
from engine.images import ImageLimits, WorkSize, read_pixels, resize_to_work_size
from engine.pictures import overlay, png_bytes
from engine.reading import read_uri
from engine.settings import change_of, parsed
from engine.store import open_store
from engine.suited import suited_preset
from stages.base import Provenance, StageOutput
from stages.filters import DropReason, FilterConfig
from stages.fully_automatic import FullyAutomatic, FullyAutomaticConfig, Preset
from stages.predictor import Image


def automatic_config(preset: str, settings: Sequence[str]) -> FullyAutomaticConfig:
    """A preset with fields replaced.

    Args:
        preset: one of `Preset`, or a config, by path or shipped name: its `fully_automatic`.
        settings: `name=value`; the names of filters may stand without `filters.`.
    """
    fields = _preset(preset).model_dump(mode="json")
    for setting in settings:
        name, value = parsed(setting)
        of_filters = name in FilterConfig.model_fields
        fields = merged(fields, change_of(f"filters.{name}" if of_filters else name, value))
    try:
        return FullyAutomaticConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"--set: {describe(error)}") from error


def _preset(name: str) -> FullyAutomaticConfig:
    if name in list(Preset):
        return FullyAutomaticConfig.preset(Preset(name))
    try:
        return load_config(name).fully_automatic
    except ConfigError as error:
        raise ConfigError(f"{error}; or a preset: {', '.join(Preset)}") from error


def generate_masks(
    images: Sequence[str],
    checkpoint: str,
    folder: Path,
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
    device: str = "cpu",
) -> Iterator[str]:
    """Write NAME.json and NAME.png for each image; yields a line of what happened to it.

    Args:
        preset, settings: see `automatic_config`; without a preset, what suits the checkpoint.

    Raises:
        EngineError: at the end, when images could not be read; the others have their files.
    """
    store = open_store(str(folder))
    loaded = load_run_checkpoint(store, checkpoint, device)
    suited, changes = (preset, ()) if preset else suited_preset(loaded)
    config = automatic_config(suited, [*changes, *settings])
    stage = FullyAutomatic(loaded.sam, config, Provenance(round=0, checkpoint=loaded.label))
    names = _distinct([Path(uri).stem for uri in images])
    unreadable = 0
    for number, uri in enumerate(images):
        try:
            pixels = resize_to_work_size(read_pixels(_read(uri), ImageLimits()), WorkSize())
        except UnreadableImageError as error:
            unreadable += 1
            yield f"{uri}: {error.status}: {error}"
            continue
        output = stage.run(Image(number, pixels), np.random.default_rng(number))
        height, width = pixels.shape[:2]
        name = names[number]
        content = {
            "image": {
                "image_id": number,
                "width": width,
                "height": height,
                "file_name": Path(uri).name,
            },
            "annotations": sa1b_annotations(output.masks),
        }
        store.replace(f"{name}.json", json.dumps(content).encode())
        picture = overlay(pixels, [mask.segmentation for mask in output.masks])
        store.replace(f"{name}.png", png_bytes(picture))
        drops = ", ".join(f"{reason} {count}" for reason, count in sorted(output.drops.items()))
        yield f"{uri}: {len(output.masks)} masks; dropped: {drops}{_advice(output)}"
    if unreadable:
        raise EngineError(f"{unreadable} of {len(images)} images could not be read, see above")


def _advice(output: StageOutput) -> str:
    unsure = output.drops.get(DropReason.LOW_PREDICTED_IOU, 0)
    if output.masks or unsure < max(output.drops.values(), default=1):
        return ""
    return "; a lower --set pred_iou_thresh may help"


def _distinct(names: Sequence[str]) -> list[str]:
    """Images of one name in two folders must not overwrite each other's masks."""
    times = Counter(names)
    taken = {name for name in names if times[name] == 1}
    distinct: list[str] = []
    for i, name in enumerate(names):
        if times[name] > 1:
            numbered = (f"{name}-{number}" for number in count(i))
            name = next(new for new in numbered if new not in taken)
            taken.add(name)
        distinct.append(name)
    return distinct


def _read(uri: str) -> bytes:
    try:
        return read_uri(uri)
    except FileNotFoundError as error:
        raise ConfigError(f"no image at {uri}; give paths of image files") from error
    except OSError as error:
        raise StorageError(f"cannot read {uri}: {error.strerror or error}") from error
