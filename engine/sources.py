"""Where a run's images come from: folders, lists, COCO-style files, and two embedded sets.

A source is listed, not read: it yields one `SourceImage` per image it names, in an order that
depends on nothing but the source. What the embedded sets draw or copy goes into the run's own
store first, so that every worker finds it there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from engine.coco import read_coco
from engine.errors import ConfigError
from engine.micrographs import draw_micrograph
from engine.reading import read_uri
from engine.scenes import draw_scene, write_scenes
from engine.store import Store, open_store
from engine.uris import child_uri, is_uri, parent_uri, path_of

_JPEG = (".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo")
_PORTABLE = (".pbm", ".pgm", ".pnm", ".ppm")
_OTHERS = (".apng", ".avif", ".bmp", ".dib", ".gif", ".png", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES = frozenset((*_JPEG, *_PORTABLE, *_OTHERS))

# What scikit-image's wheel holds of photographs of things, as opposed to textures and drawings.
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)


@dataclass(frozen=True, slots=True)
class SourceImage:
    source: str
    """Name of the source."""
    uri: str
    file_name: str
    """Relative to the source."""
    split: str = ""
    """The source's own word for it (`train`, `val2017`, ...); empty when it has none."""
    source_id: str = ""
    """The image's id in the source's annotations; empty when it has none."""


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    """How the run's records call this source; unique within a run."""
    max_images: PositiveInt | None = None
    """Take this many, spread over the whole source by a hash of their names; None takes all."""


class FolderSource(_Source):
    """Every image file below a folder, by suffix."""

    kind: Literal["folder"] = "folder"
    path: str
    """A local folder or a pyarrow.fs URI."""


class ListSource(_Source):
    """A text file with one path or URI a line; empty lines and # comments are skipped."""

    kind: Literal["list"] = "list"
    path: str
    """The text file. Relative lines are relative to its folder."""


class CocoSource(_Source):
    """The images named in a COCO-style JSON file; its annotations become ground truth."""

    kind: Literal["coco"] = "coco"
    annotations: str
    """The JSON file."""
    images: str | None = None
    """Folder of the images; None means `images` beside the JSON file."""
    split: str | None = None
    """Keep only the images whose `split` field says this; None keeps all."""
    min_votes: int = 0
    """Ignore masks that fewer annotators agreed on, where the file has a `votes` field."""
    min_area: int = 0
    """Ignore masks of fewer pixels."""


class ScenesSource(_Source):
    """Drawn images with exact masks: ground truth that needs no download."""

    kind: Literal["scenes"] = "scenes"
    count: PositiveInt
    seed: int = 0
    size_hw: tuple[PositiveInt, PositiveInt] = (384, 512)
    style: Literal["photograph", "micrograph"] = "photograph"
    """The shipped checkpoint learnt from scenes like photographs, and never saw a micrograph."""


class SkimageSource(_Source):
    """Real photographs that scikit-image ships in its wheel."""

    kind: Literal["skimage"] = "skimage"
    files: tuple[str, ...] = PHOTOGRAPHS
    """File names within `skimage/data`."""


def _names_are_unique(sources: tuple[_Source, ...]) -> tuple[_Source, ...]:
    names = [source.name for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"two sources are named {', '.join(sorted(twice))}; give each its own name"
        )
    return sources


ListedSource = FolderSource | ListSource | CocoSource
SourceConfig = Annotated[
    FolderSource | ListSource | CocoSource | ScenesSource | SkimageSource,
    Field(discriminator="kind"),
]
SourceConfigs = Annotated[
    tuple[SourceConfig, ...], Field(min_length=1), AfterValidator(_names_are_unique)
]


def source_from_path(path: str) -> ListedSource:
    """What a user means by a path on the command line, by its suffix."""
    location = path_of(path if is_uri(path) else str(Path(path).absolute()))
    named = {".json": location.parent.name, ".txt": location.stem}.get(
        location.suffix.lower(), location.name
    )
    name = "".join(c if c.isalnum() or c in "_.-" else "-" for c in named) or "images"
    if location.suffix.lower() == ".json":
        return CocoSource(name=name, annotations=path)
    if location.suffix.lower() == ".txt":
        return ListSource(name=name, path=path)
    return FolderSource(name=name, path=path)


def list_images(source: SourceConfig, store: Store) -> list[SourceImage]:
    """Every image of a source, in its own order.

    Raises:
        ConfigError: the source is missing or names no image.
        CorruptFileError: its JSON file is malformed.
    """
    listed = materialise(source, store)
    match listed:
        case FolderSource():
            images = list(_list_folder(listed))
        case ListSource():
            images = list(_list_lines(listed))
        case CocoSource():
            images = list(_list_coco(listed))
    return images if source.max_images is None else _spread(images, source.max_images)


def materialise(source: SourceConfig, store: Store) -> ListedSource:
    """Put what a source embeds into the run's store; other sources are what they are."""
    if isinstance(source, ScenesSource):
        folder = _publish_scenes(source, store)
        return CocoSource(
            name=source.name,
            max_images=source.max_images,
            annotations=child_uri(folder, "instances.json"),
        )
    if isinstance(source, SkimageSource):
        folder = _publish_photographs(source, store)
        return FolderSource(name=source.name, max_images=source.max_images, path=folder)
    return source


def _list_folder(source: FolderSource) -> Iterator[SourceImage]:
    try:
        names = [stored.path for stored in open_store(source.path).list()]
    except OSError as error:
        raise ConfigError(f"source {source.name}: cannot list {source.path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"source {source.name}: {error.object!r} is not UTF-8; rename the file"
        ) from error
    images = [name for name in names if path_of(name).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise ConfigError(
            f"source {source.name}: no image below {source.path} ({len(names)} other files); "
            f"expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    for name in images:
        yield SourceImage(source=source.name, uri=child_uri(source.path, name), file_name=name)


def _list_lines(source: ListSource) -> Iterator[SourceImage]:
    try:
        text = read_uri(source.path).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ConfigError(f"source {source.name}: cannot read {source.path}: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ConfigError(
            f"source {source.name}: {source.path} names no image; expected one path or URI a line"
        )
    folder = parent_uri(source.path)
    for name in names:
        uri = child_uri(folder, name)
        relative = str(path_of(name)).lstrip("/")
        yield SourceImage(source=source.name, uri=uri, file_name=relative)


def _list_coco(source: CocoSource) -> Iterator[SourceImage]:
    folder = source.images or child_uri(parent_uri(source.annotations), "images")
    images = read_coco(source.annotations).images
    wanted = [image for image in images if source.split in (None, image.split)]
    if not wanted:
        splits = ", ".join(sorted({image.split or "(none)" for image in images}))
        raise ConfigError(
            f"source {source.name}: none of the {len(images)} images of {source.annotations} has "
            f"split {source.split}; its splits: {splits or '(none)'}"
        )
    for image in wanted:
        yield SourceImage(
            source=source.name,
            uri=child_uri(folder, image.file_name),
            file_name=image.file_name,
            split=image.split,
            source_id=image.id,
        )


def _spread(images: Sequence[SourceImage], count: int) -> list[SourceImage]:
    """A choice that says nothing of order or name, and of which a smaller one is a part."""
    ranked = sorted(images, key=lambda image: sha256(image.file_name.encode()).digest())
    chosen = set(ranked[:count])
    return [image for image in images if image in chosen]


def _publish_scenes(source: ScenesSource, store: Store) -> str:
    folder = f"sources/{source.name}"
    if not store.exists(f"{folder}/instances.json"):
        with tempfile.TemporaryDirectory() as drawn:
            draw = draw_micrograph if source.style == "micrograph" else draw_scene
            write_scenes(Path(drawn), source.seed, source.count, source.size_hw, draw)
            written = sorted(path for path in Path(drawn).rglob("*") if path.is_file())
            # The JSON file last: it says that all images are there.
            for path in sorted(written, key=lambda path: path.suffix == ".json"):
                name = path.relative_to(drawn).as_posix()
                store.publish(f"{folder}/{name}", path.read_bytes())
    return child_uri(store.uri, folder)


def _publish_photographs(source: SkimageSource, store: Store) -> str:
    shipped = files("skimage") / "data"
    folder = f"sources/{source.name}"
    for name in source.files:
        photograph = shipped / name
        if not photograph.is_file():
            raise ConfigError(
                f"source {source.name}: scikit-image ships no {name}; it ships, among others, "
                f"{', '.join(PHOTOGRAPHS)}"
            )
        store.publish(f"{folder}/{name}", photograph.read_bytes())
    return child_uri(store.uri, folder)
