import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from engine.errors import ConfigError, CorruptFileError
from engine.images import ImageLimits, read_pixels
from engine.micrographs import draw_micrograph
from engine.reading import read_uri
from engine.scenes import draw_scene
from engine.sources import (
    PHOTOGRAPHS,
    CocoSource,
    FolderSource,
    ListSource,
    ScenesSource,
    SkimageSource,
    SourceConfigs,
    list_images,
    source_from_path,
)
from engine.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


def touch(folder, *names):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(source, store):
    return [image.file_name for image in list_images(source, store)]


def write_coco(path, images, annotations=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": list(annotations)}))
    return str(path)


def test_a_folder_is_listed_below_all_its_folders_in_order_and_only_its_images(tmp_path, store):
    touch(
        tmp_path / "in", "b.jpg", "a/z.PNG", "a/deep/x.tiff", "notes.txt", "mask.npy", "c.jpg.bak"
    )
    images = list_images(FolderSource(name="mine", path=str(tmp_path / "in")), store)
    assert [image.file_name for image in images] == ["a/deep/x.tiff", "a/z.PNG", "b.jpg"]
    assert {image.source for image in images} == {"mine"}
    assert images[0].uri == str(tmp_path / "in" / "a/deep/x.tiff")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_names_with_spaces_and_umlauts_and_signs_can_be_read_back(tmp_path, store, scheme):
    awkward = ["mit leerzeichen.jpg", "日本.png", "50%20#1?.jpg", "ümläut.webp"]
    touch(tmp_path / "in", *awkward)
    images = list_images(FolderSource(name="mine", path=f"{scheme}{tmp_path}/in"), store)
    assert {image.file_name for image in images} == set(awkward)
    assert all(read_uri(image.uri) == b"x" for image in images)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_images_is_refused_by_name(tmp_path, store, name):
    touch(tmp_path / "empty", "readme.txt")
    with pytest.raises(ConfigError, match=rf"mine.*{name}.*\.jpg"):
        list_images(FolderSource(name="mine", path=str(tmp_path / name)), store)


def test_a_file_name_that_is_not_utf8_is_refused_and_named(tmp_path, store):
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        (folder / "\udcff.jpg").write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(ConfigError, match="rename"):
        list_images(FolderSource(name="mine", path=str(folder)), store)


def test_a_list_takes_paths_beside_it_absolute_paths_and_uris(tmp_path, store):
    text = "\ufeff# my photographs\nsub/a.jpg\n\n  /abs/b.jpg \r\ns3://bucket/c%20d.jpg\ngone.jpg\n"
    (tmp_path / "photos.txt").write_text(text, encoding="utf-8")
    images = list_images(ListSource(name="mine", path=str(tmp_path / "photos.txt")), store)
    assert [image.uri for image in images] == [
        f"{tmp_path}/sub/a.jpg",
        "/abs/b.jpg",
        "s3://bucket/c%20d.jpg",
        f"{tmp_path}/gone.jpg",
    ]
    assert [image.file_name for image in images] == [
        "sub/a.jpg",
        "abs/b.jpg",
        "bucket/c d.jpg",
        "gone.jpg",
    ]


def test_a_list_that_is_missing_or_empty_is_refused(tmp_path, store):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"empty\.txt names no image"):
        list_images(ListSource(name="mine", path=str(tmp_path / "empty.txt")), store)
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.txt"):
        list_images(ListSource(name="mine", path=str(tmp_path / "gone.txt")), store)


def test_a_coco_file_lists_its_images_with_id_and_split(tmp_path, store):
    path = write_coco(
        tmp_path / "set" / "instances.json",
        [{"id": 7, "file_name": "a.jpg", "split": "val"}, {"id": "x", "file_name": "sub/b.jpg"}],
    )
    first, second = list_images(CocoSource(name="set", annotations=path), store)
    assert (first.source_id, first.split) == ("7", "val")
    assert first.uri == f"{tmp_path}/set/images/a.jpg"
    assert (second.source_id, second.split) == ("x", "")
    elsewhere = CocoSource(name="set", annotations=path, images="s3://bucket/jpg")
    assert list_images(elsewhere, store)[1].uri == "s3://bucket/jpg/sub/b.jpg"


def test_a_split_is_selected_and_an_unknown_one_is_refused_with_those_that_exist(tmp_path, store):
    images = [
        {"id": i, "file_name": f"{i}.jpg", "split": "val" if i else "train"} for i in range(3)
    ]
    path = write_coco(tmp_path / "instances.json", images)
    assert names(CocoSource(name="s", annotations=path, split="val"), store) == ["1.jpg", "2.jpg"]
    with pytest.raises(ConfigError, match=r"split test.*train, val"):
        list_images(CocoSource(name="s", annotations=path, split="test"), store)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not COCO-style"),
        ('{"images": {}}', "not COCO-style"),
        ('{"images": [{"id": 1}]}', "image 0 has no id or no file_name"),
        ('{"images": [{"id": 1, "file_name": 3}]}', "image 0"),
        ('{"images": [3]}', "image 0"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
            "same id",
        ),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": {}}', "not a list"),
    ],
)
def test_a_malformed_coco_file_is_refused_with_what_is_wrong(tmp_path, store, content, complaint):
    path = tmp_path / "instances.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorruptFileError, match=complaint):
        list_images(CocoSource(name="s", annotations=str(path)), store)


def test_a_missing_coco_file_is_refused(tmp_path, store):
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.json"):
        list_images(CocoSource(name="s", annotations=str(tmp_path / "gone.json")), store)


def test_max_images_spreads_its_choice_keeps_the_order_and_nests(tmp_path, store):
    touch(tmp_path / "in", *(f"{index:03d}.jpg" for index in range(100)))
    chosen = {
        count: names(FolderSource(name="f", path=str(tmp_path / "in"), max_images=count), store)
        for count in (10, 30, 1000)
    }
    assert len(chosen[10]) == 10
    assert chosen[10] == sorted(chosen[10])
    assert set(chosen[10]) < set(chosen[30]) < set(chosen[1000])
    assert max(chosen[10]) > "050.jpg" > min(chosen[10])


def test_the_embedded_photographs_are_copied_into_the_run_and_can_be_read(store):
    images = list_images(SkimageSource(name="photos"), store)
    assert {image.file_name for image in images} == set(PHOTOGRAPHS)
    assert all(image.uri.startswith(f"{store.uri}/sources/photos/") for image in images)
    cat = next(image for image in images if image.file_name == "chelsea.png")
    assert read_pixels(read_uri(cat.uri), ImageLimits()).shape == (300, 451, 3)
    assert list_images(SkimageSource(name="photos"), store) == images


def test_a_photograph_that_scikit_image_does_not_ship_is_refused(store):
    with pytest.raises(ConfigError, match=r"ships no unicorn\.png"):
        list_images(SkimageSource(name="photos", files=("unicorn.png",)), store)


def test_scenes_are_drawn_into_the_run_once(store):
    source = ScenesSource(name="drawn", count=2, seed=3, size_hw=(64, 96))
    images = list_images(source, store)
    assert len(images) == 2
    assert all(image.source_id for image in images)
    before = {stored.path: store.read(stored.path) for stored in store.list()}
    assert read_pixels(read_uri(images[0].uri), ImageLimits()).shape == (64, 96, 3)
    assert list_images(source, store) == images
    assert {stored.path: store.read(stored.path) for stored in store.list()} == before


def test_scenes_come_in_the_style_that_was_asked_for(store):
    source = ScenesSource(name="cells", count=1, seed=3, size_hw=(64, 96), style="micrograph")
    (image,) = list_images(source, store)
    pixels = read_pixels(read_uri(image.uri), ImageLimits()).astype(float)
    drawn = {draw: draw(3, 0, (64, 96)).pixels for draw in (draw_micrograph, draw_scene)}
    distances = {draw: abs(pixels - expected).mean() for draw, expected in drawn.items()}
    assert min(distances, key=distances.get) is draw_micrograph


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "/data/coco/instances.json",
            CocoSource(name="coco", annotations="/data/coco/instances.json"),
        ),
        ("/data/my photos", FolderSource(name="my-photos", path="/data/my photos")),
        ("s3://bucket/some/photos/", FolderSource(name="photos", path="s3://bucket/some/photos/")),
        ("/data/picks.txt", ListSource(name="picks", path="/data/picks.txt")),
        ("/", FolderSource(name="images", path="/")),
    ],
)
def test_a_path_on_the_command_line_is_understood_by_its_suffix(path, expected):
    assert source_from_path(path) == expected


def test_sources_are_told_apart_by_kind_and_need_names_of_their_own():
    sources = TypeAdapter(SourceConfigs)
    parsed = sources.validate_python(
        [{"kind": "folder", "name": "a", "path": "x"}, {"kind": "scenes", "name": "b", "count": 3}]
    )
    assert [type(source) for source in parsed] == [FolderSource, ScenesSource]
    with pytest.raises(ValidationError, match="two sources are named a"):
        sources.validate_python([{"kind": "folder", "name": "a", "path": p} for p in "xy"])
    with pytest.raises(ValidationError, match="at least 1"):
        sources.validate_python([])
    with pytest.raises(ValidationError, match="pattern"):
        FolderSource(name="../x", path="x")
    with pytest.raises(ValidationError, match="Extra inputs"):
        FolderSource(name="a", path="x", pth="y")


def test_listing_reads_no_image(tmp_path, store):
    touch(tmp_path / "in", "not-an-image.jpg")
    assert names(FolderSource(name="f", path=str(tmp_path / "in")), store) == ["not-an-image.jpg"]
