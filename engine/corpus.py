"""The corpus: every image a run was given, once and for all, one row each.

    sources -> corpus/listing.parquet -> corpus/parts/*.parquet -> corpus/corpus.parquet

The listing freezes what the sources named; the parts record what reading those files gave; the
corpus puts them together, numbers the rows, and finds files of the same content. Parts are scanned
in any order by any worker, and a run that was stopped scans only those that are missing.

A file that cannot be used is a row too, with a status and a reason: nothing vanishes. So is one
that needs more memory than there is: a part that fails is made of rows of its images, each scanned
alone (`engine/run.py`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from engine.errors import ConfigError, EngineError, UnavailableImageError, UnreadableImageError
from engine.image_files import read_file
from engine.images import ImageLimits, probe, read_pixels
from engine.sources import SourceConfig, SourceImage, list_images
from engine.store import Store, open_store
from stages.records import ImageStatus, Record

LISTING = "corpus/listing.parquet"
CORPUS = "corpus/corpus.parquet"
REFUSED = "cannot be read: storage refuses it"
"""How the reason begins where the fault may lie with the storage and not with one file."""
MAX_FAILED_SHARE, MIN_FAILED = 0.01, 3
"""Files of one part that storage may refuse, or that may be given up, before it is taken for the
fault of the storage or of the machines."""
# A row is found by its group: small enough to read one, few enough for a footer of 1M rows.
ROWS_PER_GROUP = 2000

Split = Literal["train", "held_out"]
RunParts = Callable[[Callable[[int], int], Iterable[int]], Iterable[int]]
"""As `map`: call the function on every number, in any order, in any process."""


class CorpusConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    held_out_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Of the images whose source does not say `val` or `test`: chosen by content, so that a copy
    of a held-out image is held out too."""
    limits: ImageLimits = ImageLimits()
    verify: Literal["full", "header"] = "full"
    """`full` decodes every image once, so that damage is found here; `header` trusts headers."""
    images_per_part: PositiveInt = 1000


class CorpusRow(Record):
    image_id: int
    """Number of the row, from 0."""
    source: str
    source_id: str
    """The image's id in its source's annotations; empty when it has none."""
    uri: str
    file_name: str
    """Relative to the source."""
    width: int
    height: int
    """Original pixels, upright; 0 when unknown."""
    orientation: int
    """EXIF orientation of the stored pixels, 1 to 8."""
    size_bytes: int
    sha256: str
    """Of the file's bytes; empty when they could not be read."""
    split: Split
    status: ImageStatus
    reason: str
    """Why the status is not ok; empty when it is."""


LISTING_SCHEMA = pa.schema([(name, pa.string()) for name in SourceImage.__slots__])
CORPUS_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("split", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def build_corpus(
    store: Store, sources: Sequence[SourceConfig], config: CorpusConfig, *, run: RunParts = map
) -> "Corpus":
    """The run's corpus; what exists of it already is used as it is.

    Args:
        run: carries `scan_part` to workers; the default scans here, part by part.
    """
    if not store.exists(CORPUS):
        if not store.exists(LISTING):
            _publish_listing(store, sources, config.images_per_part)
        with pq.ParquetFile(store.open(LISTING)) as listing:
            paths = [_part_path(number) for number in range(listing.num_row_groups)]
        published = {stored.path for stored in store.list("corpus/parts")}
        missing = [number for number, path in enumerate(paths) if path not in published]
        for _ in run(partial(scan_part, store.uri, config), missing):
            pass
        corpus = assemble_corpus(_read_parts(store, paths))
        _refuse_unusable(corpus)
        _publish_table(store, CORPUS, corpus, rows_per_group=ROWS_PER_GROUP)
    return Corpus(store)


def scan_part(store_uri: str, config: CorpusConfig, number: int) -> int:
    """Scan one part of the listing and publish it; returns its number. Safe to repeat."""
    store = open_store(store_uri)
    publish_part(store, number, scan_images(listed_part(store, number), config))
    return number


def listed_part(store: Store, number: int) -> list[SourceImage]:
    with pq.ParquetFile(store.open(LISTING)) as listing:
        return [SourceImage(**row) for row in listing.read_row_group(number).to_pylist()]


def publish_part(store: Store, number: int, part: pa.Table) -> None:
    _publish_table(store, _part_path(number), part, rows_per_group=part.num_rows)


def scan_images(images: Sequence[SourceImage], config: CorpusConfig) -> pa.Table:
    """Read every file; a part as `part_of` makes it."""
    rows = (scan_image(image, number, config) for number, image in enumerate(images))
    return part_of(rows, len(images))


def part_of(rows: Iterable[CorpusRow], num_images: int) -> pa.Table:
    """Rows of the corpus schema, numbered from 0, duplicates not yet found.

    Args:
        rows: in any order, and no more of them drawn once too many have failed.

    Raises:
        EngineError: more files fail than single broken ones would explain.
    """
    part: list[CorpusRow] = []
    failed, bearable = 0, max(MIN_FAILED, int(MAX_FAILED_SHARE * num_images))
    for row in rows:
        part.append(row)
        failed += row.status is ImageStatus.GIVEN_UP or row.reason.startswith(REFUSED)
        if failed > bearable:
            raise EngineError(
                f"{failed} of {len(part)} files cannot be scanned; the last: {row.uri}: "
                f"{row.reason}. Mend that and run the same command again, or start in a new "
                "folder without these files"
            )
    part.sort(key=lambda row: row.image_id)
    return pa.Table.from_pylist([row.model_dump() for row in part], schema=CORPUS_SCHEMA)


def scan_image(
    image: SourceImage, image_id: int, config: CorpusConfig, *, given_up: str = ""
) -> CorpusRow:
    """
    Args:
        given_up: why the file is not to be opened again.
    """
    width, height, orientation, digest, data = 0, 0, 1, "", b""
    status, reason = ImageStatus.OK, ""
    try:
        if given_up:
            raise UnreadableImageError(ImageStatus.GIVEN_UP, given_up)
        data = read_file(image.uri)
        digest = sha256(data).hexdigest()
        header = probe(data, config.limits)
        width, height, orientation = header.width, header.height, header.orientation
        if config.verify == "full":
            height, width = read_pixels(data, config.limits).shape[:2]
    except UnreadableImageError as error:
        status, reason = ImageStatus(error.status), error.reason
    except UnavailableImageError as error:
        status, reason = ImageStatus.UNREADABLE, f"{REFUSED}: {error.reason}"
    return CorpusRow(
        image_id=image_id,
        source=image.source,
        source_id=image.source_id,
        uri=image.uri,
        file_name=image.file_name,
        width=width,
        height=height,
        orientation=orientation,
        size_bytes=len(data),
        sha256=digest,
        split=_split_of(image, digest, config.held_out_fraction),
        status=status,
        reason=reason,
    )


def assemble_corpus(parts: Iterable[pa.Table]) -> pa.Table:
    """All parts in order as one table: rows numbered, and of equal files only the first usable."""
    table = pa.concat_tables(parts)
    table = table.set_column(0, CORPUS_SCHEMA.field(0), pa.array(np.arange(table.num_rows)))
    first = _first_of_same_content(table)
    repeated = first != np.arange(table.num_rows)
    originals = pa.array(first, mask=~repeated)
    reason = pc.binary_join_element_wise(
        "same content as image ",
        originals.cast(pa.string()),
        ", ",
        table["file_name"].take(originals),
        "",
    )
    return _replace(
        table,
        status=pc.if_else(pa.array(repeated), ImageStatus.DUPLICATE.value, table["status"]),
        reason=pc.coalesce(reason, table["reason"]),
    )


class Corpus:
    """A run's published corpus. Columns and rows are read when asked for, never all of it."""

    def __init__(self, store: Store) -> None:
        self._file = pq.ParquetFile(store.open(CORPUS))
        self._reading = Lock()  # a ParquetFile is for one thread at a time

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def columns(self, *names: str) -> pa.Table:
        """Whole columns, in the order of image_id."""
        with self._reading:
            return self._file.read(columns=list(names))

    def select(
        self,
        *,
        sources: Sequence[str] | None = None,
        split: Split | None = None,
        statuses: Sequence[ImageStatus] | None = (ImageStatus.OK,),
    ) -> NDArray[np.int64]:
        """Ids of the images that meet every condition, ascending; None means any."""
        table = self.columns("source", "split", "status")
        chosen = np.ones(len(self), dtype=bool)
        conditions = (("source", sources), ("split", split and [split]), ("status", statuses))
        for name, allowed in conditions:
            if allowed is not None:
                values = pa.array([str(value) for value in allowed], pa.string())
                chosen &= pc.is_in(table[name], value_set=values).to_numpy()
        return np.flatnonzero(chosen)

    def row(self, image_id: int) -> CorpusRow:
        return self.rows([image_id])[0]

    def rows(self, image_ids: Sequence[int]) -> list[CorpusRow]:
        """In the order asked for."""
        if unknown := [i for i in image_ids if not 0 <= i < len(self)]:
            raise ValueError(
                f"the corpus has no image {unknown[0]}; its ids are 0 to {len(self) - 1}"
            )
        by_group: dict[int, list[int]] = defaultdict(list)
        for image_id in image_ids:
            by_group[image_id // ROWS_PER_GROUP].append(image_id % ROWS_PER_GROUP)
        found: dict[int, CorpusRow] = {}
        for group, places in sorted(by_group.items()):
            with self._reading:
                table = self._file.read_row_group(group)
            rows = table.take(pa.array(places)).to_pylist()
            found |= {row["image_id"]: CorpusRow(**row) for row in rows}
        return [found[image_id] for image_id in image_ids]

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Images by (source, split, status)."""
        keys = ["source", "split", "status"]
        table = self.columns(*keys).group_by(keys).aggregate([([], "count_all")])
        return Counter(
            {
                (row["source"], row["split"], row["status"]): row["count_all"]
                for row in table.to_pylist()
            }
        )


def _publish_listing(store: Store, sources: Sequence[SourceConfig], images_per_part: int) -> None:
    tables = [_listing_table(list_images(source, store)) for source in sources]
    _publish_table(store, LISTING, pa.concat_tables(tables), rows_per_group=images_per_part)


def _listing_table(images: Sequence[SourceImage]) -> pa.Table:
    columns = [[getattr(image, name) for image in images] for name in LISTING_SCHEMA.names]
    return pa.table(columns, schema=LISTING_SCHEMA)


def _part_path(number: int) -> str:
    return f"corpus/parts/{number:06d}.parquet"


def _read_parts(store: Store, paths: Iterable[str]) -> Iterable[pa.Table]:
    return (pq.ParquetFile(store.open(path)).read() for path in paths)


def _publish_table(store: Store, path: str, table: pa.Table, *, rows_per_group: int) -> None:
    store.publish_written(
        path,
        lambda file: pq.write_table(table, file, row_group_size=rows_per_group, compression="zstd"),
    )


def _split_of(image: SourceImage, digest: str, held_out_fraction: float) -> Split:
    if image.split.startswith(("val", "test")):  # COCO says val2017
        return "held_out"
    if not digest:
        return "train"
    return "held_out" if int(digest[:8], 16) / 2**32 < held_out_fraction else "train"


def _first_of_same_content(table: pa.Table) -> NDArray[np.int64]:
    """For every row the first usable row of the same content; itself where it is not usable."""
    first = np.arange(table.num_rows)
    usable = np.flatnonzero(pc.equal(table["status"], ImageStatus.OK.value).to_numpy())
    content = table["sha256"].take(pa.array(usable)).dictionary_encode().unify_dictionaries()
    codes = [chunk.indices.to_numpy() for chunk in content.chunks]
    if codes:
        _, place, code = np.unique(np.concatenate(codes), return_index=True, return_inverse=True)
        first[usable] = usable[place[code]]
    return first


def _replace(table: pa.Table, **columns: pa.ChunkedArray) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def _refuse_unusable(corpus: pa.Table) -> None:
    if ImageStatus.OK.value in corpus["status"].unique().to_pylist():
        return
    first = corpus.slice(0, 1).to_pylist()[0]
    raise ConfigError(
        f"none of the {corpus.num_rows} images can be used; the first, {first['uri']}: "
        f"{first['reason']}. Mend the sources and start in a new folder"
    )
