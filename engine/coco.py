"""COCO-style JSON: its images, and its annotations as checked masks.

A file that has no list of images is refused as a whole. An annotation that makes no sense is
refused alone, with a reason from `MaskDrop`, so that one bad polygon does not cost a dataset.

Masks are re-encoded from checked counts: pycocotools trusts what it is given, and counts that do
not add up to the image make it read, and write, memory that is not its own.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.errors import ConfigError, CorruptFileError
from engine.reading import read_uri
from stages.records import Rle
from stages.rle import (
    rle_area,
    rle_from_polygons,
    rle_from_uncompressed,
    uncompressed_counts,
)

MAX_FRAME = 2**31 - 1  # pycocotools counts pixels in 32 bits
MAX_VOTES = 2**31 - 1
MAX_EDGES = 100
"""Of all edges of a mask's polygons together, in heights and widths of the image. The rasteriser
takes 40 bytes for each of their pixels: 10 MB for an intricate outline, gigabytes for scribbles."""


class MaskDrop(StrEnum):
    """Why an annotation of a file did not become ground truth."""

    UNKNOWN_IMAGE = "unknown_image"
    """Its image_id is not among the images."""
    IMAGE_NOT_USABLE = "image_not_usable"
    """Its image is unreadable, too large, or a duplicate."""
    MALFORMED = "malformed"
    """Its segmentation is missing, or no polygon and no RLE."""
    SIZE_MISMATCH = "size_mismatch"
    """Drawn on another size than the image has."""
    EMPTY = "empty"
    FEW_VOTES = "few_votes"
    SMALL = "small"


class RefusedAnnotationError(ValueError):
    def __init__(self, drop: MaskDrop) -> None:
        super().__init__(str(drop))
        self.drop = drop


@dataclass(frozen=True, slots=True)
class CocoImage:
    id: str
    file_name: str
    split: str
    size_hw: tuple[int, int] | None
    """As the file says; None when it does not."""


@dataclass(frozen=True)
class CocoFile:
    images: tuple[CocoImage, ...]
    annotations: dict[str, list[dict[str, Any]]] | None
    """By image id, unchecked; None when the file has no annotations at all."""
    num_homeless: int
    """Annotations that name no image of the file."""


@dataclass(frozen=True, slots=True)
class CocoMask:
    segmentation: Rle
    area: int
    """Pixels, counted."""
    iscrowd: bool
    """One mask around many objects: no single object to annotate."""
    votes: int | None
    """How many annotators drew it, where the file says so."""


def read_coco(uri: str) -> CocoFile:
    """Raises ConfigError when there is no such file, CorruptFileError when it is no COCO JSON."""
    try:
        content = json.loads(read_uri(uri))
    except OSError as error:
        raise ConfigError(f"cannot read {uri}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{uri} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise CorruptFileError(f"{uri} is not COCO-style: expected an object with a list 'images'")
    images = tuple(_image(uri, index, raw) for index, raw in enumerate(content["images"]))
    annotations: dict[str, list[dict[str, Any]]] = {image.id: [] for image in images}
    if len(annotations) < len(images):
        raise CorruptFileError(f"{uri}: two images have the same id; expected every id once")
    if "annotations" not in content:
        return CocoFile(images, annotations=None, num_homeless=0)
    if not isinstance(content["annotations"], list):
        raise CorruptFileError(f"{uri}: 'annotations' is not a list")
    homeless = 0
    for raw in content["annotations"]:
        if isinstance(raw, dict) and (home := _id(raw.get("image_id"))) in annotations:
            annotations[home].append(raw)
        else:
            homeless += 1
    return CocoFile(images, annotations, homeless)


def read_mask(annotation: dict[str, Any], size_hw: tuple[int, int] | None) -> CocoMask:
    """One annotation, checked.

    Args:
        size_hw: frame of the polygons, None where it is not the image's; an RLE brings its own.
    Raises:
        RefusedAnnotationError: it holds no mask.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and size_hw is None:
        raise RefusedAnnotationError(MaskDrop.SIZE_MISMATCH)
    try:
        if isinstance(segmentation, list):
            assert size_hw is not None
            rle = _from_polygons(segmentation, size_hw)
        else:
            rle = _from_rle(segmentation)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise RefusedAnnotationError(MaskDrop.MALFORMED) from error
    area = rle_area(rle)
    if not area:
        raise RefusedAnnotationError(MaskDrop.EMPTY)
    votes = annotation.get("votes")
    return CocoMask(
        segmentation=rle,
        area=area,
        iscrowd=bool(annotation.get("iscrowd")),
        votes=votes if type(votes) is int and abs(votes) <= MAX_VOTES else None,
    )


def _image(uri: str, index: int, raw: Any) -> CocoImage:
    if not isinstance(raw, dict) or "id" not in raw or not isinstance(raw.get("file_name"), str):
        raise CorruptFileError(f"{uri}: image {index} has no id or no file_name")
    size = raw.get("height"), raw.get("width")
    has_size = all(isinstance(side, int) and side > 0 for side in size)
    return CocoImage(
        id=_id(raw["id"]),
        file_name=_text(raw["file_name"]),
        split=_text(str(raw.get("split") or "")),
        size_hw=size if has_size else None,  # type: ignore[arg-type]  # both are int, just checked
    )


def _id(value: Any) -> str:
    """A table that had gaps has written its whole numbers as 7.0."""
    return _text(str(int(value) if isinstance(value, float) and value.is_integer() else value))


def _text(value: str) -> str:
    """Without lone surrogates, which JSON can hold and UTF-8 cannot: they name no file anyway."""
    return value.encode("utf-8", "replace").decode()


def _from_polygons(polygons: Sequence[Any], size_hw: tuple[int, int]) -> Rle:
    height, width = size_hw
    _refuse_too_large(height, width)
    reach = 2 * max(height, width)  # the rasteriser walks every pixel of an edge, wherever it goes
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; expected x0 y0 x1 y1 x2 y2 ...")
        if not all(math.isfinite(value) and abs(value) <= reach for value in polygon):
            raise ValueError(f"a polygon leaves its image of {width} x {height}")
    if not polygons:
        raise ValueError("no polygon")
    if sum(map(_edges, polygons)) > MAX_EDGES * (height + width):
        raise ValueError(f"a scribble on an image of {width} x {height}")
    return rle_from_polygons(polygons, height, width)


def _edges(polygon: Sequence[float]) -> float:
    """Pixels on the way around."""
    corners = list(zip(polygon[::2], polygon[1::2], strict=True))
    edges = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum(max(abs(x1 - x0), abs(y1 - y0)) for (x0, y0), (x1, y1) in edges)


def _from_rle(segmentation: Any) -> Rle:
    height, width = (int(side) for side in segmentation["size"])
    _refuse_too_large(height, width)
    counts = segmentation["counts"]
    runs = (
        uncompressed_counts(counts).tolist()
        if isinstance(counts, str)
        else [int(count) for count in counts]
    )
    return rle_from_uncompressed(runs, height, width)


def _refuse_too_large(height: int, width: int) -> None:
    if min(height, width) < 1 or height * width > MAX_FRAME:
        raise ValueError(f"a mask of {height} x {width} pixels")
