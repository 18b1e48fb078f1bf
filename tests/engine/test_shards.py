import json
from collections.abc import Iterator
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import CorruptFileError, EngineError, StorageError
from engine.reading import STORE_PAUSES_SECONDS
from engine.shards import (
    FORMAT_VERSION,
    ROWS_PER_GROUP,
    SCHEMA,
    ShardHeader,
    publish_shard,
    read_columns,
    read_footer,
    read_record,
    read_records,
)
from engine.stats import Stats
from engine.store import LocalStore, Store
from records import full_record, image_record
from stages.records import ImageRecord, ImageStatus, StageName

GOLDEN = Path(__file__).parent.parent / "golden"
HEADER = ShardHeader(
    stage=StageName.FULLY_AUTOMATIC,
    round=3,
    shard=42,
    checkpoint="tiny@0123456789ab",
    config_sha256="cd" * 32,
)
PATH = "shards/shard-000042.parquet"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def many(count: int) -> list[ImageRecord]:
    return [image_record(number, num_masks=number % 5) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_GROUP, 2 * ROWS_PER_GROUP + 3])
def test_records_come_back_equal_and_in_order(store: Store, count: int) -> None:
    assert publish_shard(store, PATH, HEADER, many(count))
    assert list(read_records(store, PATH)) == many(count)


def test_a_record_with_every_field_filled_comes_back_equal(store: Store) -> None:
    bare = image_record(1, num_masks=0, drops={}, status=ImageStatus.UNREADABLE, error="cut off")
    publish_shard(store, PATH, HEADER, [full_record(), bare])
    assert list(read_records(store, PATH)) == [full_record(), bare]


def test_any_row_can_be_read_without_the_others(store: Store) -> None:
    records = many(2 * ROWS_PER_GROUP + 3)
    publish_shard(store, PATH, HEADER, records)
    for row in (0, ROWS_PER_GROUP - 1, ROWS_PER_GROUP, len(records) - 1):
        assert read_record(store, PATH, row) == records[row]
    with pq.ParquetFile(store.open(PATH)) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [ROWS_PER_GROUP, ROWS_PER_GROUP, 3]


def test_the_footer_says_what_the_shard_is_and_what_it_amounts_to(store: Store) -> None:
    records = [*many(20), full_record()]
    publish_shard(store, PATH, HEADER, records)
    footer = read_footer(store, PATH)
    assert footer.format_version == FORMAT_VERSION == 2
    assert footer.header == HEADER
    assert footer.num_images == 21
    assert footer.num_masks == sum(len(record.masks) for record in records)
    assert footer.stats == Stats.total(map(Stats.of, records))
    assert footer.wall_seconds >= 0


def test_a_shard_of_before_is_read_as_before(store: LocalStore) -> None:
    """Format 1 did not say which interactions were snapped and zoomed in."""
    publish_shard(store, PATH, HEADER, [full_record()])
    footer = read_footer(store, PATH).model_copy(update={"format_version": 1})
    rows = pq.read_table(store.root / PATH).to_pylist()
    for row in rows:
        for action in (action for mask in row["masks"] for action in mask["interactions"]):
            del action["snapped"], action["zoomed_in"]
    old = pa.Table.from_pylist(rows, schema=schema_of_format_1())
    metadata = {"sa_engine": footer.model_dump_json()}
    pq.write_table(old.replace_schema_metadata(metadata), store.root / PATH)
    assert read_footer(store, PATH).format_version == 1
    (record,) = read_records(store, PATH)
    actions = [action for mask in record.masks for action in mask.interactions]
    assert actions
    assert all(action.snapped is action.zoomed_in is None for action in actions)


def test_fields_that_a_later_version_adds_are_not_read(store: LocalStore) -> None:
    publish_shard(store, PATH, HEADER, [full_record()])
    with_more(store, header={"sharpener": "abc"}, brightness=0.5)
    assert read_footer(store, PATH).header == HEADER
    assert list(read_records(store, PATH)) == [full_record()]


def test_a_shard_of_a_later_format_is_not_called_damaged(store: LocalStore) -> None:
    publish_shard(store, PATH, HEADER, [full_record()])
    with_more(store, format_version=FORMAT_VERSION + 1, num_masks="many")
    with pytest.raises(EngineError, match="has format 3, this program reads up to 2") as refused:
        read_footer(store, PATH)
    assert not isinstance(refused.value, CorruptFileError)


class FlakyFile:
    """Of a network that fails so many reads."""

    def __init__(self, file: Any, failures: int) -> None:
        self.file, self.failures = file, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "FlakyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int | None = None) -> bytes:
        if self.failures > 0:
            self.failures -= 1
            self.file.seek(0)
            raise OSError("AWS Error SLOW_DOWN")
        return bytes(self.file.read(size))


def test_a_shard_that_cannot_be_read_now_is_asked_for_again_and_not_called_damaged(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_shard(store, PATH, HEADER, [full_record()])
    monkeypatch.setattr("engine.reading.time.sleep", lambda _: None)
    opened, failures = store.open, len(STORE_PAUSES_SECONDS)
    monkeypatch.setattr(store, "open", lambda path: FlakyFile(opened(path), failures))
    assert list(read_records(store, PATH)) == [full_record()]
    monkeypatch.setattr(store, "open", lambda path: FlakyFile(opened(path), failures + 1))
    with pytest.raises(OSError, match=f"cannot read {PATH}: AWS Error SLOW_DOWN"):
        read_footer(store, PATH)


def with_more(store: LocalStore, *, header: dict[str, str] | None = None, **fields: object) -> None:
    """The shard at PATH with these in its footer, and a column that this version does not know."""
    footer = read_footer(store, PATH).model_dump(mode="json") | fields
    footer["header"] |= header or {}
    table = pq.read_table(store.root / PATH)
    table = table.append_column("sharpness", pa.array([0.5] * len(table)))
    metadata = {"sa_engine": json.dumps(footer)}
    pq.write_table(table.replace_schema_metadata(metadata), store.root / PATH)


def schema_of_format_1() -> pa.Schema:
    masks = SCHEMA.field("masks").type.value_type
    actions = masks.field("interactions").type.value_type
    old_actions = pa.struct([f for f in actions if f.name not in ("snapped", "zoomed_in")])
    old_masks = pa.struct(
        [f if f.name != "interactions" else (f.name, pa.list_(old_actions)) for f in masks]
    )
    fields = [f if f.name != "masks" else (f.name, pa.list_(old_masks)) for f in SCHEMA]
    return pa.schema(fields)


def test_an_empty_shard_has_a_footer_too(store: Store) -> None:
    publish_shard(store, PATH, HEADER, [])
    footer = read_footer(store, PATH)
    assert (footer.num_images, footer.num_masks, footer.stats) == (0, 0, Stats())


def test_the_footer_is_read_without_the_rows(store: LocalStore) -> None:
    publish_shard(store, PATH, HEADER, many(5))
    file = store.root / PATH
    data = bytearray(file.read_bytes())
    end_of_rows = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:end_of_rows] = b"\0" * (end_of_rows - 4)
    file.write_bytes(data)
    assert read_footer(store, PATH).num_images == 5
    with pytest.raises(CorruptFileError, match=PATH):
        list(read_records(store, PATH))


def test_a_column_can_be_read_alone(store: Store) -> None:
    publish_shard(store, PATH, HEADER, many(20))
    table = read_columns(store, PATH, ["image_id", "masks.list.element.id"])
    assert table["image_id"].to_pylist() == list(range(20))
    assert [len(masks) for masks in table["masks"].to_pylist()] == [i % 5 for i in range(20)]


def test_the_second_writer_of_a_shard_is_told_so(store: Store) -> None:
    assert publish_shard(store, PATH, HEADER, many(2))
    assert not publish_shard(store, PATH, HEADER, many(3))
    assert len(list(read_records(store, PATH))) == 2


def test_a_shard_whose_records_fail_half_way_does_not_come_to_be(store: Store) -> None:
    def broken() -> Iterator[ImageRecord]:
        yield from many(ROWS_PER_GROUP + 1)
        raise RuntimeError("the model ran out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        publish_shard(store, PATH, HEADER, broken())
    assert store.list() == []


def test_a_shard_that_the_disk_refuses_is_a_storage_error(store: LocalStore) -> None:
    rng = np.random.default_rng(0)
    records = [
        image_record(number, error=rng.bytes(2000).hex(), status=ImageStatus.GIVEN_UP)
        for number in range(3 * ROWS_PER_GROUP)
    ]
    limits = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"cannot write {PATH}"):
            publish_shard(store, PATH, HEADER, records)
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
    assert list(store.root.rglob("*.*")) == []


def test_a_cut_shard_is_corrupt_and_nothing_else(store: LocalStore) -> None:
    publish_shard(store, PATH, HEADER, [*many(ROWS_PER_GROUP + 2), full_record()])
    whole = (store.root / PATH).read_bytes()
    points = np.random.default_rng(0).integers(0, len(whole), 60)
    for length in (0, 1, 4, 7, 8, 11, 12, *points, *(len(whole) - n for n in (1, 4, 5, 8, 9))):
        (store.root / PATH).write_bytes(whole[:length])
        for read in (
            lambda: read_footer(store, PATH),
            lambda: list(read_records(store, PATH)),
            lambda: read_record(store, PATH, 0),
            lambda: read_columns(store, PATH, ["image_id"]),
        ):
            with pytest.raises(CorruptFileError, match=PATH):
                read()


def test_a_shard_with_damaged_bytes_is_corrupt_or_reads_as_it_was(store: LocalStore) -> None:
    records = [*many(ROWS_PER_GROUP + 2), full_record()]
    publish_shard(store, PATH, HEADER, records)
    whole = (store.root / PATH).read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for place in rng.integers(4, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        (store.root / PATH).write_bytes(damaged)
        try:
            read_footer(store, PATH)
            assert list(read_records(store, PATH)) == records
        except CorruptFileError:
            noticed += 1
    assert noticed > 50


def test_a_parquet_file_of_somebody_else_is_no_shard(store: LocalStore) -> None:
    (store.root / "shards").mkdir()
    pq.write_table(SCHEMA.empty_table(), store.root / PATH)
    with pytest.raises(CorruptFileError, match="no shard of this engine"):
        read_footer(store, PATH)


def test_a_missing_shard_is_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        read_footer(store, PATH)


def test_the_json_of_a_record_is_what_it_was() -> None:
    golden = (GOLDEN / "image_record.json").read_text()
    assert full_record().model_dump_json(indent=1) + "\n" == golden
    assert ImageRecord.model_validate_json(golden) == full_record()


def test_the_arrow_schema_is_what_it_was() -> None:
    fields = [f"{field.name}: {field.type}" for field in SCHEMA]
    assert "\n".join(fields) + "\n" == (GOLDEN / "shard_schema.txt").read_text()


def test_the_parquet_schema_is_what_it_was(store: LocalStore) -> None:
    """As other programs meet it."""
    publish_shard(store, PATH, HEADER, [full_record()])
    with pq.ParquetFile(store.root / PATH) as file:
        columns = [
            f"{column.path} {column.physical_type} {column.logical_type} "
            f"{column.max_definition_level} {column.max_repetition_level}"
            for column in (file.schema.column(i) for i in range(len(file.schema)))
        ]
    assert "\n".join(columns) + "\n" == (GOLDEN / "shard_columns.txt").read_text()


def test_the_schema_has_the_fields_of_the_record_in_its_order() -> None:
    assert SCHEMA.names == list(ImageRecord.model_fields)


def test_a_record_without_a_field_or_with_one_too_many_is_refused() -> None:
    fields = image_record(1).model_dump(mode="json")
    with pytest.raises(ValueError, match="widht"):
        ImageRecord.model_validate(fields | {"widht": 4})
    del fields["width"]
    with pytest.raises(ValueError, match="width"):
        ImageRecord.model_validate(fields)
