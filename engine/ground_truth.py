"""Ground truth: the masks that COCO-style sources bring along, for simulation and evaluation.

One Parquet file, a row an image, sorted by image_id and cut into small row groups, so that the
masks of one image are read without the others. An image without a row is one of which nothing is
known; a row without masks is one in which somebody looked and found nothing.

Masks are kept in the frame of the upright original. Annotations drawn on the pixels as they are
stored, before EXIF turns them, are turned too. They are recognised by their size; where that says
nothing (a square image, one upside down) the annotations are taken to be upright, since that is
how browsers and annotation tools show a photograph.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from engine.coco import CocoFile, CocoMask, MaskDrop, RefusedAnnotationError, read_coco, read_mask
from engine.corpus import Corpus, CorpusRow
from engine.errors import ConfigError
from engine.images import turn_upright
from engine.sources import CocoSource, SourceConfig, materialise
from engine.store import Store
from stages.records import ImageStatus, Rle
from stages.rle import Mask, decode_rle, encode_rle

GROUND_TRUTH = "corpus/ground_truth.parquet"
ROWS_PER_GROUP = 32
_COUNTS_KEY = b"sa_engine_ground_truth"

_MASK = pa.struct(
    [("counts", pa.string()), ("area", pa.int64()), ("iscrowd", pa.bool_()), ("votes", pa.int32())]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("masks", pa.list_(_MASK)),
    ]
)

Counts = dict[str, Counter[str]]
"""By source: masks `kept` and, by the name of each MaskDrop, those that were not."""
_COUNTS = TypeAdapter(Counts)


@dataclass(frozen=True)
class _AnnotatedImage:
    image_id: int
    source_id: str
    size_hw: tuple[int, int]
    orientation: int
    usable: bool


def build_ground_truth(
    store: Store, sources: Sequence[SourceConfig], corpus: Corpus
) -> "GroundTruth":
    """The ground truth of a run's corpus; what exists already is used as it is."""
    if not store.exists(GROUND_TRUTH):
        annotated = [
            listed
            for source in sources
            if isinstance(listed := materialise(source, store), CocoSource)
        ]
        store.publish_written(GROUND_TRUTH, lambda file: _write(file, annotated, corpus))
    return GroundTruth(store)


class GroundTruth:
    """A run's published ground truth, one image at a time."""

    def __init__(self, store: Store) -> None:
        self._file = pq.ParquetFile(store.open(GROUND_TRUTH))
        self.image_ids: NDArray[np.int64] = self._file.read(["image_id"])["image_id"].to_numpy()
        """Of the images that have a row, ascending."""
        self.counts = _COUNTS.validate_json(self._file.metadata.metadata[_COUNTS_KEY])
        """Of the sources' annotations."""

    def __contains__(self, image_id: int) -> bool:
        place = np.searchsorted(self.image_ids, image_id)
        return bool(place < len(self.image_ids) and self.image_ids[place] == image_id)

    def all_masks(self, image_id: int) -> list[CocoMask]:
        """Crowd regions included, in the file's order, upright original pixels.

        Raises:
            ConfigError: nothing is known of the image.
        """
        if image_id not in self:
            raise ConfigError(
                f"image {image_id} has no ground truth; simulated annotators and evaluations need "
                "a source with annotations"
            )
        place = int(np.searchsorted(self.image_ids, image_id))
        group = self._file.read_row_group(place // ROWS_PER_GROUP)
        row = group.slice(place % ROWS_PER_GROUP, 1).to_pylist()[0]
        size = row["height"], row["width"]
        return [
            CocoMask(segmentation=Rle(size=size, counts=mask.pop("counts")), **mask)
            for mask in row["masks"]
        ]

    def masks(self, image_id: int) -> list[Rle]:
        """The single objects of an image: as `all_masks`, crowd regions left out."""
        return [mask.segmentation for mask in self.all_masks(image_id) if not mask.iscrowd]

    def masks_at(self, row: CorpusRow, size_hw: tuple[int, int]) -> list[Mask]:
        """The single objects of an image in the frame it is worked on in, as (H, W) bool.

        Objects too thin to have a pixel left there are left out.
        """
        masks = [resize_mask(decode_rle(rle), size_hw) for rle in self.masks(row.image_id)]
        return [mask for mask in masks if mask.any()]


def resize_mask(mask: Mask, size_hw: tuple[int, int]) -> Mask:
    """A mask in another frame: every new pixel is the old one under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size_hw, mask.shape, strict=True)
    )
    resized: Mask = mask[rows[:, None], columns]
    return resized


def _write(file: BinaryIO, sources: Sequence[CocoSource], corpus: Corpus) -> None:
    counts: Counts = {source.name: Counter[str]() for source in sources}
    rows = (row for source in sources for row in _rows(source, corpus, counts[source.name]))
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
        writer.add_key_value_metadata({_COUNTS_KEY: _COUNTS.dump_json(counts)})


def _rows(source: CocoSource, corpus: Corpus, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of one source in the order of the corpus; counts what is kept and what is refused."""
    content = read_coco(source.annotations)
    if content.annotations is None:
        return
    if content.num_homeless:
        counts[MaskDrop.UNKNOWN_IMAGE] = content.num_homeless
    sizes = {image.id: image.size_hw for image in content.images}
    for image in _images_of(source.name, corpus):
        annotations = content.annotations.get(image.source_id, [])
        if not image.usable:
            counts[MaskDrop.IMAGE_NOT_USABLE] += len(annotations)
            continue
        if image.source_id not in sizes:
            raise ConfigError(
                f"source {source.name}: {source.annotations} names no image {image.source_id!r} "
                "any more, as it did when the corpus was recorded; restore it or start a new run"
            )
        frame: tuple[int, int] | None = sizes[image.source_id] or image.size_hw
        if frame not in (image.size_hw, image.size_hw[::-1]):
            frame = None  # its polygons are of another image, and may be of any size
        masks = []
        for annotation in annotations:
            try:
                mask = read_mask(annotation, frame)
                masks.append(_checked(_upright(mask, image), source))
                counts["kept"] += 1
            except RefusedAnnotationError as error:
                counts[error.drop] += 1
        yield _row(image, masks)
    _refuse_if_nothing_is_kept(source, content, counts)


def _refuse_if_nothing_is_kept(source: CocoSource, content: CocoFile, counts: Counter[str]) -> None:
    """Annotations of which none was kept are a mistake, unless their images are at fault."""
    tried = counts.total() - counts[MaskDrop.UNKNOWN_IMAGE] - counts[MaskDrop.IMAGE_NOT_USABLE]
    all_homeless = content.num_homeless and not any((content.annotations or {}).values())
    if not counts["kept"] and (tried or all_homeless):
        raise ConfigError(
            f"source {source.name}: no annotation of {source.annotations} became a mask: "
            f"{told_counts(counts)}; mend it, or give its images as a folder"
        )


def told_counts(counts: Counter[str]) -> str:
    refused = sorted((+counts - Counter({"kept": counts["kept"]})).items())
    return ", ".join([f"{counts['kept']} kept", *(f"{count} {drop}" for drop, count in refused)])


def _images_of(source: str, corpus: Corpus) -> Iterator[_AnnotatedImage]:
    table = corpus.columns(
        "source", "image_id", "source_id", "height", "width", "orientation", "status"
    )
    for row in table.filter(pc.equal(table["source"], source)).to_pylist():
        yield _AnnotatedImage(
            image_id=row["image_id"],
            source_id=row["source_id"],
            size_hw=(row["height"], row["width"]),
            orientation=row["orientation"],
            usable=row["status"] == ImageStatus.OK,
        )


def _upright(mask: CocoMask, image: _AnnotatedImage) -> CocoMask:
    frame = mask.segmentation.size
    if frame == image.size_hw:
        return mask
    if frame != image.size_hw[::-1] or image.orientation < 5:
        raise RefusedAnnotationError(MaskDrop.SIZE_MISMATCH)
    stored = decode_rle(mask.segmentation)
    return replace(mask, segmentation=encode_rle(turn_upright(stored, image.orientation)))


def _checked(mask: CocoMask, source: CocoSource) -> CocoMask:
    if mask.votes is not None and mask.votes < source.min_votes:
        raise RefusedAnnotationError(MaskDrop.FEW_VOTES)
    if mask.area < source.min_area:
        raise RefusedAnnotationError(MaskDrop.SMALL)
    return mask


def _row(image: _AnnotatedImage, masks: Sequence[CocoMask]) -> dict[str, Any]:
    height, width = image.size_hw
    return {
        "image_id": image.image_id,
        "height": height,
        "width": width,
        "masks": [
            {
                "counts": mask.segmentation.counts,
                "area": mask.area,
                "iscrowd": mask.iscrowd,
                "votes": mask.votes,
            }
            for mask in masks
        ],
    }
