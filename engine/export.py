"""Records as other tools read them: SA-1B's pairs of files, or one COCO-style JSON.

A folder is of one export, which it names from its start. Running that again goes on where it
stopped: images that are there are not read again, and annotations that are there must be the same.
Images are encoded anew, as JPEG in the frame of their masks; none of the original file's metadata
goes along.
"""

import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, TypedDict

from PIL import Image

from engine import layout
from engine.config import frozen_config
from engine.context import WorkerContext, WorkerSpec
from engine.corpus import Corpus
from engine.errors import ConfigError, EngineError, UnreadableImageError
from engine.images import MAX_JPEG_SIDE, Pixels
from engine.manifest import load_manifest
from engine.run import run_id
from engine.shards import read_records
from engine.store import STAGED_LIVE_SECONDS, Store
from stages.records import ImageRecord, ImageStatus, MaskRecord, Record, Rle, StageName

ORIGIN = "exported_from"
"""An `Origin`. Not named .json: there, readers of SA-1B look for images."""
COCO_JSON = "instances.json"
JPEG_QUALITY = 95
TOO_LONG = "too_long_for_jpeg"
IDS_PER_IMAGE = 1_000_000

ReadImage = Callable[[ImageRecord], Pixels]
"""Pixels in the frame of the record; raises UnreadableImageError where there are none, and
UnavailableImageError, which ends the export, where storage is away."""


class ExportFormat(StrEnum):
    SA1B = "sa1b"
    """sa_ID.jpg and sa_ID.json for each image, side by side."""
    COCO = "coco"
    """images/ and one instances.json, its only category "object"."""


IMAGES = {ExportFormat.SA1B: "sa_{:d}.jpg", ExportFormat.COCO: "images/{:012d}.jpg"}
"""Where they go by their ids."""


class Origin(Record):
    """The one export that a folder is of."""

    run: str
    """Its id; of a run without one, where it lies."""
    format: ExportFormat
    stage: StageName | None
    """None for all."""


class RleJson(TypedDict):
    size: tuple[int, int]
    counts: str


class Sa1bAnnotation(TypedDict):
    id: int
    segmentation: RleJson
    bbox: tuple[float, float, float, float]
    area: int
    predicted_iou: float
    stability_score: float
    crop_box: tuple[float, float, float, float]
    point_coords: tuple[tuple[float, float], ...]


class CocoAnnotation(TypedDict):
    id: int
    image_id: int
    category_id: int
    segmentation: RleJson
    area: int
    bbox: tuple[float, float, float, float]
    iscrowd: int
    predicted_iou: float
    stability_score: float
    source: str
    stage: str


@dataclass
class Exported:
    images: int = 0
    masks: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Images that cannot be exported, by status or as `TOO_LONG`."""


def export_run(run: Store, out: Store, form: str, stage: StageName | None = None) -> Iterator[str]:
    """Export the sealed rounds of a run; yields a line for each thing worth saying.

    Raises:
        EngineError: no round is sealed, or the folder is of another export.
    """
    if form not in list(ExportFormat):
        raise ConfigError(f"no export format {form!r}; expected {' or '.join(ExportFormat)}")
    config = frozen_config(run)
    folders = [
        config.round_folder(index)
        for index, planned in enumerate(config.rounds)
        if stage in (None, planned.stage)
    ]
    sealed = [folder for folder in folders if run.exists(layout.manifest_path(folder))]
    if not sealed:
        raise EngineError(
            f"{run.uri} has no sealed round to export; see sa-engine status {run.uri}"
        )
    _claim(out, Origin(run=run_id(run) or run.uri, format=ExportFormat(form), stage=stage))
    out.sweep(STAGED_LIVE_SECONDS)
    spec = WorkerSpec(run.uri, "", limits=config.corpus.limits, work_size=config.work_size)
    context, corpus = WorkerContext(spec), Corpus(run)
    records = (
        record
        for folder in sealed
        for shard in load_manifest(run, folder).shards
        for record in read_records(run, shard.path)
    )

    def read_image(record: ImageRecord) -> Pixels:
        return context.read_image(corpus.row(record.image_id)).pixels

    exported = export_dataset(records, read_image, ExportFormat(form), out)
    yield f"{exported.images:,} images with {exported.masks:,} masks in {out.uri}"
    for status, count in exported.left_out.most_common():
        yield f"left out: {count:,} images ({status})"
    for folder in folders:
        if folder not in sealed:
            yield f"left out: {folder}, which is not sealed yet"


def export_dataset(
    records: Iterable[ImageRecord], read_image: ReadImage, form: ExportFormat, out: Store
) -> Exported:
    """Write all records whose status is ok and whose image fits into a JPEG, and their images.

    Raises:
        EngineError: the folder holds other annotations, or two records are of one image.
    """
    exported = Exported()
    pictured = _publish_images(records, read_image, out, IMAGES[form], exported)
    if form == ExportFormat.SA1B:
        _write_sa1b(pictured, out)
    else:
        _write_coco(pictured, out)
    return exported


def sa1b_annotations(masks: Sequence[MaskRecord], *, image_id: int = 0) -> list[Sa1bAnnotation]:
    """SA-1B's fields and no others; ready for json.dumps."""
    return [
        Sa1bAnnotation(
            id=_annotation_id(image_id, mask),
            segmentation=_rle_json(mask.segmentation),
            bbox=mask.bbox,
            area=mask.area,
            predicted_iou=mask.predicted_iou,
            stability_score=mask.stability_score,
            crop_box=mask.crop_box,
            point_coords=_foreground_points(mask),
        )
        for mask in masks
    ]


def _foreground_points(mask: MaskRecord) -> tuple[tuple[float, float], ...]:
    """Of a mask that was clicked those that add to it: SA-1B's field has no labels."""
    if not mask.interactions:
        return mask.point_coords
    return tuple(
        (action.coords[0], action.coords[1])
        for action in mask.interactions
        if action.kind == "point" and action.label == 1
    )


def _claim(out: Store, origin: Origin) -> None:
    """Before the first image. The ids of images begin at 0 in every run: whose they are that an
    export left when it was stopped, their names do not say."""
    if not out.exists(ORIGIN):
        images = IMAGES[origin.format].partition("{")[0]
        if any(file.path.startswith(images) for file in out.list()):
            raise EngineError(
                f"{out.uri} holds images, and no {ORIGIN} says of which run, as earlier versions "
                "left them; export into an empty folder"
            )
    claim = origin.model_dump_json().encode()
    if not out.publish(ORIGIN, claim) and (found := out.read(ORIGIN)) != claim:
        raise EngineError(
            f"{out.uri} is of another export: {found.decode(errors='replace')}, and this one is "
            f"{claim.decode()}; export into an empty folder"
        )


def _publish_images(
    records: Iterable[ImageRecord],
    read_image: ReadImage,
    out: Store,
    name: str,
    exported: Exported,
) -> Iterator[ImageRecord]:
    """Yields the records whose image is in the export."""
    for record in records:
        if record.status != ImageStatus.OK:
            exported.left_out[record.status] += 1
            continue
        if max(record.width, record.height) > MAX_JPEG_SIDE:
            exported.left_out[TOO_LONG] += 1
            continue
        path = name.format(record.image_id)
        try:
            if not out.exists(path):
                out.publish(path, _jpeg(read_image(record), record))
        except UnreadableImageError as error:  # it was readable when its masks were made
            exported.left_out[error.status] += 1
            continue
        exported.images += 1
        exported.masks += len(record.masks)
        yield record


def _write_sa1b(records: Iterable[ImageRecord], out: Store) -> None:
    for record in records:
        content = {
            "image": {
                "image_id": record.image_id,
                "width": record.width,
                "height": record.height,
                "file_name": f"sa_{record.image_id}.jpg",
            },
            "annotations": sa1b_annotations(record.masks, image_id=record.image_id),
        }
        _publish_same(out, f"sa_{record.image_id}.json", io.BytesIO(_dump(content)))


def _write_coco(records: Iterable[ImageRecord], out: Store) -> None:
    """Annotations pass through to disk; of an image a line of text is kept until the end."""
    images: dict[int, bytes] = {}
    separator = b"\n"
    with tempfile.TemporaryFile() as body:
        body.write(b'{"info":{"description":"exported by sa-engine"},\n"categories":')
        body.write(_dump([{"id": 1, "name": "object"}]) + b',\n"annotations":[')
        for record in records:
            if record.image_id in images:
                raise EngineError(f"two records are of image {record.image_id}; export one of them")
            images[record.image_id] = _dump(
                {
                    "id": record.image_id,
                    "width": record.width,
                    "height": record.height,
                    "file_name": f"{record.image_id:012d}.jpg",
                    "source_file_name": record.file_name,
                }
            )
            for mask in record.masks:
                body.write(separator + _dump(_coco_annotation(record.image_id, mask)))
                separator = b",\n"
        body.write(b'],\n"images":[\n' + b",\n".join(images.values()) + b"]}\n")
        _publish_same(out, COCO_JSON, body)


def _coco_annotation(image_id: int, mask: MaskRecord) -> CocoAnnotation:
    return CocoAnnotation(
        id=_annotation_id(image_id, mask),
        image_id=image_id,
        category_id=1,
        segmentation=_rle_json(mask.segmentation),
        area=mask.area,
        bbox=mask.bbox,
        iscrowd=0,
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        source=mask.source.value,
        stage=mask.stage.value,
    )


def _annotation_id(image_id: int, mask: MaskRecord) -> int:
    """Unique over the export and the same in each; from 1, as pycocotools takes 0 for no match."""
    return image_id * IDS_PER_IMAGE + mask.id + 1


def _rle_json(rle: Rle) -> RleJson:
    return RleJson(size=rle.size, counts=rle.counts)


def _jpeg(pixels: Pixels, record: ImageRecord) -> bytes:
    if pixels.shape != (record.height, record.width, 3):
        raise ValueError(
            f"image {record.image_id} ({record.file_name}) has pixels of shape {pixels.shape}, "
            f"expected the frame of its masks: ({record.height}, {record.width}, 3)"
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _publish_same(out: Store, path: str, body: BinaryIO) -> None:
    """Publish a file, or make sure that the one that is there is the same."""
    body.seek(0)
    if out.publish_written(path, lambda file: shutil.copyfileobj(body, file)):
        return
    body.seek(0)
    with out.open(path) as stored:
        same = _sha256(stored) == _sha256(body)
    if not same:
        raise EngineError(
            f"{out.uri}/{path} exists and is of another export; export into an empty folder"
        )


def _sha256(stream: Any) -> bytes:
    return hashlib.file_digest(stream, "sha256").digest()


def _dump(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
