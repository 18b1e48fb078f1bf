"""ImageRecords to and from Parquet; owns the Arrow schema.

One shard is one file: a row an image, its masks a list of structs within the row. The footer holds
what a run needs to know of a shard without reading it: which one it is, what made it, its
statistics. A file that exists is therefore its own commit record. Fields that a later version adds
within the format are not read (docs/format.md).
"""

import io
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from engine.errors import CorruptFileError, EngineError
from engine.reading import patiently
from engine.stats import Stats
from engine.store import Store
from stages.records import ImageRecord, Record, StageName

FORMAT_VERSION = 2
"""2: interactions say whether they were snapped and zoomed in. Shards of 1 are read as before."""
ROWS_PER_GROUP = 16
"""Small, so that training reads one image's masks without its neighbours'."""
_FOOTER_KEY = b"sa_engine"

_XYWH = pa.list_(pa.float64(), 4)
_RLE = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])
_INTERACTION = pa.struct(
    [
        ("kind", pa.string()),
        ("coords", pa.list_(pa.float64())),
        ("label", pa.int32()),
        ("output", pa.int32()),
        ("seconds", pa.float64()),
        ("predicted_iou", pa.float64()),
        ("answer", _RLE),
        ("stroke", _RLE),
        ("snapped", pa.bool_()),
        ("zoomed_in", pa.bool_()),
    ]
)
_MASK = pa.struct(
    [
        ("id", pa.int32()),
        ("segmentation", _RLE),
        ("bbox", _XYWH),
        ("area", pa.int64()),
        ("predicted_iou", pa.float64()),
        ("stability_score", pa.float64()),
        ("crop_box", _XYWH),
        ("point_coords", pa.list_(pa.list_(pa.float64(), 2))),
        ("stage", pa.string()),
        ("round", pa.int32()),
        ("source", pa.string()),
        ("annotator", pa.string()),
        ("seconds", pa.float64()),
        ("num_clicks", pa.int32()),
        ("checkpoint", pa.string()),
        ("interactions", pa.list_(_INTERACTION)),
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("stage", pa.string()),
        ("round", pa.int32()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("masks", pa.list_(_MASK)),
        ("drops", pa.map_(pa.string(), pa.int64())),
        ("annotator_seconds", pa.float64()),
        ("worker_seconds", pa.float64()),
    ]
)


class ShardHeader(Record):
    """Which shard this is and what made it."""

    stage: StageName
    round: int
    shard: int
    checkpoint: str
    config_sha256: str
    edge_detector: str | None = None
    """As `PlanHeader.edge_detector` in `engine/manifest.py`."""
    mask_scorer: str | None = None
    """The same."""
    click_scorer: str | None = None
    """The same."""


class _Versioned(Record):
    format_version: int = FORMAT_VERSION


class ShardFooter(_Versioned):
    header: ShardHeader
    num_images: int
    num_masks: int
    wall_seconds: float
    """From the first image to the last, on the worker."""
    stats: Stats


def publish_shard(
    store: Store, path: str, header: ShardHeader, records: Iterable[ImageRecord]
) -> bool:
    """Write records as they come and make the file visible at the end.

    Returns:
        False when somebody else published this shard meanwhile; theirs stays.
    """
    return store.publish_written(path, lambda file: _write(file, header, records))


def read_footer(store: Store, path: str) -> ShardFooter:
    """Without reading rows."""
    with _opened(store, path) as file:
        metadata = file.metadata.metadata or {}
        if _FOOTER_KEY not in metadata:
            raise CorruptFileError(f"{path} is no shard of this engine: its footer says nothing")
        content = metadata[_FOOTER_KEY]
        version = _Versioned.model_validate_json(content, extra="ignore").format_version
        if version > FORMAT_VERSION:
            raise EngineError(
                f"{path} has format {version}, this program reads up to {FORMAT_VERSION}; use a "
                "newer one"
            )
        return ShardFooter.model_validate_json(content, extra="ignore")


def read_records(store: Store, path: str) -> Iterator[ImageRecord]:
    with _opened(store, path) as file:
        for group in range(file.num_row_groups):
            yield from _records(file.read_row_group(group))


def read_record(store: Store, path: str, row: int) -> ImageRecord:
    with _opened(store, path) as file:
        group = file.read_row_group(row // ROWS_PER_GROUP)
        return next(_records(group.slice(row % ROWS_PER_GROUP, 1)))


def read_columns(store: Store, path: str, columns: list[str]) -> pa.Table:
    with _opened(store, path) as file:
        return file.read(columns=columns)


def _write(file: BinaryIO, header: ShardHeader, records: Iterable[ImageRecord]) -> None:
    num_images = num_masks = 0
    stats = Stats()
    started = time.monotonic()
    with pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        group: list[dict[str, Any]] = []
        for record in records:
            num_images += 1
            num_masks += len(record.masks)
            stats += Stats.of(record)
            group.append(record.model_dump(mode="json"))
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                group = []
        if group or num_images == 0:
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
        footer = ShardFooter(
            header=header,
            num_images=num_images,
            num_masks=num_masks,
            wall_seconds=time.monotonic() - started,
            stats=stats,
        )
        writer.add_key_value_metadata({_FOOTER_KEY: footer.model_dump_json()})


@contextmanager
def _opened(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A shard to read from; whatever its bytes are found to be, a CorruptFileError says so."""
    with store.open(path) as opened:
        source = _Source(opened, path)
        try:
            yield pq.ParquetFile(source, page_checksum_verification=True)
        except (OSError, pa.ArrowException, UnicodeDecodeError, ValidationError) as error:
            if source.refusal is not None:  # the machine's, not the file's: Arrow says the same
                raise OSError(f"cannot read {path}: {source.refusal}") from error
            reason = " ".join(str(error).split())
            raise CorruptFileError(f"{path} is damaged or not a shard: {reason}") from error


class _Source(io.RawIOBase):
    """An open file that is read patiently, and notes why it could not be read."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path
        self.refusal: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1) -> bytes:
        start = self._file.tell()

        def request() -> bytes:
            self._file.seek(start)
            return bytes(self._file.read(None if size < 0 else size))

        try:
            return patiently(request, self._path)
        except OSError as error:
            self.refusal = error
            raise


def _records(rows: pa.Table) -> Iterator[ImageRecord]:
    for row in rows.to_pylist():
        yield ImageRecord.model_validate(row | {"drops": dict(row["drops"])}, extra="ignore")
