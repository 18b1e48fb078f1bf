import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

import engine.reading
from engine.corpus import (
    CORPUS,
    CORPUS_SCHEMA,
    LISTING,
    REFUSED,
    ROWS_PER_GROUP,
    Corpus,
    CorpusConfig,
    CorpusRow,
    assemble_corpus,
    build_corpus,
    scan_images,
    scan_part,
)
from engine.errors import ConfigError, EngineError
from engine.sources import FolderSource, ListSource, SourceImage, list_images
from engine.store import open_store
from stages.records import ImageStatus


def picture(seed, format="PNG", size_hw=(8, 12), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def bomb():
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture
def photos(tmp_path):
    """Names in the order in which a folder is listed, and what each ought to become."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = {
        "a.png": (picture(1), ImageStatus.OK, ""),
        "b-copy-of-a.png": (picture(1), ImageStatus.DUPLICATE, "same content as image 0, a.png"),
        "c-empty.jpg": (b"", ImageStatus.UNREADABLE, "empty"),
        "d-text.jpg": (b"dear diary", ImageStatus.UNREADABLE, "not an image"),
        "e-cut.jpg": (picture(2, "JPEG", (64, 64))[:-300], ImageStatus.UNREADABLE, "cut off"),
        "f-cut.png": (picture(3)[:-40], ImageStatus.UNREADABLE, ""),
        "g-bomb.png": (bomb(), ImageStatus.TOO_LARGE, "100000 x 100000"),
        "h-upright.jpg": (picture(4, "JPEG", exif=rotated_exif()), ImageStatus.OK, ""),
        "i-日本.webp": (picture(5, "WEBP"), ImageStatus.OK, ""),
        "j-empty-too.png": (b"", ImageStatus.UNREADABLE, "empty"),
    }
    for name, (data, _, _) in files.items():
        (folder / name).write_bytes(data)
    return folder, {name: expected for name, (_, *expected) in files.items()}


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


def build(store, folder, **config):
    source = FolderSource(name="photos", path=str(folder))
    return build_corpus(store, [source], CorpusConfig(**config))


def every_row(corpus):
    return corpus.rows(range(len(corpus)))


def test_every_file_gets_one_row_with_its_status_and_reason(photos, store):
    folder, expected = photos
    rows = every_row(build(store, folder))
    assert [row.file_name for row in rows] == list(expected)
    assert [row.image_id for row in rows] == list(range(len(expected)))
    for row in rows:
        status, reason = expected[row.file_name]
        assert row.status == status, row
        assert reason in row.reason
        assert bool(row.reason) == (status is not ImageStatus.OK)
        assert row.uri == str(folder / row.file_name)
        assert row.size_bytes == (folder / row.file_name).stat().st_size
        assert len(row.sha256) == 64


def test_sizes_are_those_of_the_upright_original(photos, store):
    rows = {row.file_name: row for row in every_row(build(store, photos[0]))}
    upright, plain = rows["h-upright.jpg"], rows["a.png"]
    assert (upright.width, upright.height, upright.orientation) == (8, 12, 6)
    assert (plain.width, plain.height, plain.orientation) == (12, 8, 1)


def test_headers_alone_miss_a_cut_end_and_say_the_same_of_whole_files(photos, store, tmp_path):
    full = every_row(build(store, photos[0]))
    fast = every_row(build(open_store(str(tmp_path / "fast")), photos[0], verify="header"))
    for slow_row, fast_row in zip(full, fast, strict=True):
        if slow_row.status is ImageStatus.OK:
            assert slow_row == fast_row
    assert next(row for row in fast if row.file_name == "e-cut.jpg").status is ImageStatus.OK


def test_parts_of_any_size_scanned_in_any_order_give_the_same_corpus(photos, tmp_path):
    def backwards(function, numbers):
        return [function(number) for number in reversed(list(numbers))]

    tables = []
    for images_per_part, run in ((1000, map), (3, map), (3, backwards), (1, backwards)):
        store = open_store(str(tmp_path / f"run{len(tables)}"))
        source = FolderSource(name="photos", path=str(photos[0]))
        config = CorpusConfig(images_per_part=images_per_part)
        corpus = build_corpus(store, [source], config, run=run)
        tables.append(corpus.columns(*CORPUS_SCHEMA.names))
    assert all(table.equals(tables[0]) for table in tables)


def test_a_stopped_scan_goes_on_with_the_missing_parts_and_the_frozen_list(photos, store):
    folder, expected = photos
    scanned = []

    def stop_after_two(function, numbers):
        for number in list(numbers)[:2]:
            scanned.append(function(number))
        raise KeyboardInterrupt

    source = FolderSource(name="photos", path=str(folder))
    config = CorpusConfig(images_per_part=2)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(store, [source], config, run=stop_after_two)
    assert not store.exists(CORPUS)
    (folder / "0-came-later.png").write_bytes(picture(99))

    def remember(function, numbers):
        return [scanned.append(number) or function(number) for number in numbers]

    corpus = build_corpus(store, [source], config, run=remember)
    assert scanned == [0, 1, 2, 3, 4]
    assert [row.file_name for row in every_row(corpus)] == list(expected)


def test_a_finished_corpus_is_not_touched_again(photos, store):
    build(store, photos[0])
    before = {stored.path: store.read(stored.path) for stored in store.list()}
    for path in photos[0].iterdir():
        path.unlink()
    assert len(build(store, photos[0])) == len(photos[1])
    assert {stored.path: store.read(stored.path) for stored in store.list()} == before


def test_scanning_a_part_twice_keeps_the_first(photos, store):
    build(store, photos[0], images_per_part=4)
    before = store.read("corpus/parts/000001.parquet")
    (photos[0] / "e-cut.jpg").write_bytes(picture(50, "JPEG"))
    assert scan_part(store.uri, CorpusConfig(images_per_part=4), 1) == 1
    assert store.read("corpus/parts/000001.parquet") == before


def test_files_that_are_missing_or_no_files_are_rows_too(tmp_path, store):
    (tmp_path / "ok.png").write_bytes(picture(1))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "list.txt").write_text(
        "ok.png\ngone.png\nfolder.png\nnul\0byte.png\nnosuchscheme://x/y.png\nok.png\n"
    )
    with (tmp_path / "list.txt").open("a") as file:
        file.write("x" * 300 + ".png\n")
    source = ListSource(name="list", path=str(tmp_path / "list.txt"))
    rows = every_row(build_corpus(store, [source], CorpusConfig()))
    unreadable = ImageStatus.UNREADABLE
    assert [row.status for row in rows] == [
        ImageStatus.OK,
        *[unreadable] * 4,
        ImageStatus.DUPLICATE,
        unreadable,
    ]
    assert rows[1].reason == "no such file"
    assert all(row.reason.startswith("cannot be read: ") for row in (*rows[2:5], rows[6]))
    assert not any(REFUSED in row.reason for row in rows)
    assert (rows[1].sha256, rows[1].size_bytes, rows[1].split) == ("", 0, "train")
    assert rows[5].reason == "same content as image 0, ok.png"


def test_a_disk_that_is_away_stops_the_scan_until_it_is_back(tmp_path, store):
    disk = tmp_path / "disk"
    disk.mkdir()
    for number in range(8):
        (disk / f"{number}.png").write_bytes(picture(number))
    images = list_images(FolderSource(name="folder", path=str(disk)), store)
    disk.rename(tmp_path / "away")
    with pytest.raises(EngineError, match=r"4 of 4 files cannot be scanned.*is its disk mounted"):
        scan_images(images, CorpusConfig())
    (tmp_path / "away").rename(disk)
    assert scan_images(images, CorpusConfig())["status"].to_pylist() == ["ok"] * 8


def test_a_hiccup_of_the_storage_costs_no_image_and_an_outage_stops_the_scan(
    tmp_path, store, monkeypatch
):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    read_uri, failing = engine.reading.read_uri, {"3.png": 2, "5.png": 99}

    def flaky(uri):
        name = uri.rpartition("/")[2]
        if failing.get(name, 0) > 0:
            failing[name] -= 1
            raise OSError("connection reset")
        return read_uri(uri)

    monkeypatch.setattr(engine.reading, "read_uri", flaky)
    monkeypatch.setattr(engine.reading.time, "sleep", lambda seconds: None)
    images = list_images(FolderSource(name="folder", path=str(tmp_path)), store)
    statuses = scan_images(images, CorpusConfig())["status"].to_pylist()
    assert statuses == ["ok"] * 5 + ["unreadable"] + ["ok"] * 2  # one bad sector is data
    failing |= {f"{number}.png": 99 for number in range(4)}
    with pytest.raises(EngineError, match=r"4 of 4 files cannot.*refuses it: connection reset"):
        scan_images(images, CorpusConfig())


def test_a_copy_in_a_later_source_is_a_duplicate_of_the_earlier_one(tmp_path, store):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture(7))
    sources = [FolderSource(name=name, path=str(tmp_path / name)) for name in ("two", "one")]
    corpus = build_corpus(store, sources, CorpusConfig())
    assert corpus.row(0).status is ImageStatus.OK
    assert (corpus.row(1).source, corpus.row(1).status) == ("one", ImageStatus.DUPLICATE)


def test_a_corpus_without_one_usable_image_is_refused_with_the_first_reason(tmp_path, store):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"none of the 1 images.*x\.png: not an image"):
        build(store, tmp_path / "in")


def scanned_splits(folder, own_splits, **config):
    images = []
    for index, split in enumerate(own_splits):
        path = Path(folder, f"{index}.png")
        path.write_bytes(picture(index, size_hw=(1, 1)))
        images.append(SourceImage("s", str(path), path.name, split))
    return scan_images(images, CorpusConfig(**config))["split"].to_pylist()


def test_the_source_s_own_validation_split_is_held_out(tmp_path):
    own = ["val", "test", "val2017", "test-dev"]
    assert scanned_splits(tmp_path, own, held_out_fraction=0) == ["held_out"] * 4


def test_a_fraction_of_the_others_is_held_out_by_content(tmp_path):
    splits = scanned_splits(tmp_path, ["train2017", ""] * 150, held_out_fraction=0.3)
    assert 60 < splits.count("held_out") < 120
    assert splits == scanned_splits(tmp_path, [""] * 300, held_out_fraction=0.3)
    assert scanned_splits(tmp_path, [""] * 20, held_out_fraction=0) == ["train"] * 20


def part(names, digests, statuses):
    rows = [
        {
            "image_id": 0,
            "source": "s",
            "source_id": "",
            "uri": f"/x/{name}",
            "file_name": name,
            "width": 4,
            "height": 3,
            "orientation": 1,
            "size_bytes": 10,
            "sha256": digest,
            "split": "train",
            "status": status,
            "reason": "" if status == "ok" else "broken",
        }
        for name, digest, status in zip(names, digests, statuses, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=CORPUS_SCHEMA)


def test_duplicates_are_found_across_parts_and_point_to_the_first_usable_file():
    table = assemble_corpus(
        [
            part("abc", ["11", "22", ""], ["unreadable", "ok", "unreadable"]),
            part("def", ["11", "", "22"], ["ok", "unreadable", "ok"]),
            part("gh", ["22", "11"], ["ok", "ok"]),
        ]
    )
    assert table["image_id"].to_pylist() == list(range(8))
    assert table["status"].to_pylist() == [
        *("unreadable", "ok", "unreadable"),
        *("ok", "unreadable", "duplicate"),
        *("duplicate", "duplicate"),
    ]
    reasons = table["reason"].to_pylist()
    assert reasons[:5] == ["broken", "", "broken", "", "broken"]
    assert reasons[5:] == [
        "same content as image 1, b",
        "same content as image 1, b",
        "same content as image 3, d",
    ]
    assert table.schema.equals(CORPUS_SCHEMA)


def test_parts_without_a_usable_file_can_be_assembled():
    table = assemble_corpus([part("a", [""], ["unreadable"])])
    assert table["status"].to_pylist() == ["unreadable"]


@pytest.fixture
def large(store):
    """More rows than a row group, written straight to the store."""
    count = 2 * ROWS_PER_GROUP + 10
    names = [f"{index}.png" for index in range(count)]
    digests = [f"{index:064x}" for index in range(count)]
    table = assemble_corpus([part(names, digests, ["ok"] * count)])
    store.publish_written(
        CORPUS, lambda file: pq.write_table(table, file, row_group_size=ROWS_PER_GROUP)
    )
    return Corpus(store)


def test_rows_come_in_the_order_asked_for_whatever_their_group(large):
    ids = [ROWS_PER_GROUP, 3, 2 * ROWS_PER_GROUP + 9, 3, ROWS_PER_GROUP - 1]
    assert [row.image_id for row in large.rows(ids)] == ids
    assert [row.file_name for row in large.rows(ids)] == [f"{i}.png" for i in ids]
    assert isinstance(large.row(5), CorpusRow)
    assert large.rows([]) == []


@pytest.mark.parametrize("image_id", [-1, 2 * ROWS_PER_GROUP + 10])
def test_an_unknown_id_is_refused_with_the_range(large, image_id):
    with pytest.raises(ValueError, match=rf"no image {image_id}; its ids are 0 to 4009"):
        large.row(image_id)


def test_images_are_selected_by_source_split_and_status(photos, tmp_path, store):
    more = tmp_path / "more"
    more.mkdir()
    (more / "x.png").write_bytes(picture(70))
    sources = [
        FolderSource(name="photos", path=str(photos[0])),
        FolderSource(name="more", path=str(more)),
    ]
    corpus = build_corpus(store, sources, CorpusConfig(held_out_fraction=0))
    assert corpus.select().tolist() == [0, 7, 8, 10]
    assert corpus.select(sources=["more"]).tolist() == [10]
    assert corpus.select(sources=[]).tolist() == []
    assert corpus.select(split="held_out").tolist() == []
    assert corpus.select(split="train", sources=["photos"]).tolist() == [0, 7, 8]
    assert corpus.select(statuses=[ImageStatus.DUPLICATE]).tolist() == [1]
    assert corpus.select(statuses=None).tolist() == list(range(11))
    assert corpus.counts()[("photos", "train", "unreadable")] == 5
    assert sum(corpus.counts().values()) == len(corpus) == 11


def test_the_schema_holds_the_fields_of_a_row_in_their_order():
    assert CORPUS_SCHEMA.names == list(CorpusRow.model_fields)


def test_the_listing_is_cut_into_parts(photos, store):
    build(store, photos[0], images_per_part=4)
    with pq.ParquetFile(store.open(LISTING)) as listing:
        assert [listing.metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 2]


def test_a_config_out_of_range_is_refused():
    for wrong in ({"held_out_fraction": 1.0}, {"images_per_part": 0}, {"verify": "maybe"}):
        with pytest.raises(ValidationError):
            CorpusConfig(**wrong)
