import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import layout
from engine.config import EngineConfig, RoundConfig, freeze_config
from engine.corpus import Corpus, build_corpus
from engine.errors import ConfigError, EngineError, UnreadableImageError
from engine.export import (
    IMAGES,
    Exported,
    ExportFormat,
    export_dataset,
    export_run,
    sa1b_annotations,
)
from engine.images import Pixels, WorkSize
from engine.manifest import PlanHeader, RoundPlan, freeze_plan, seal
from engine.shards import ShardHeader, publish_shard
from engine.sources import FolderSource
from engine.store import STAGED_SUFFIX, LocalStore
from stages.records import (
    ImageRecord,
    ImageStatus,
    Interaction,
    MaskRecord,
    Rle,
    Source,
    StageName,
)
from stages.rle import Mask, decode_rle, encode_rle, rle_area, rle_bbox

SIZE_HW = (24, 36)


@pytest.fixture
def out(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "out")


def some_masks(image_id: int, count: int) -> list[Mask]:
    rng = np.random.default_rng(image_id)
    return [rng.random(SIZE_HW) < share for share in np.linspace(0.1, 0.9, count)]


def image_record(
    image_id: int, masks: int = 3, status: ImageStatus = ImageStatus.OK, round_index: int = 0
) -> ImageRecord:
    rles = [encode_rle(mask) for mask in some_masks(image_id, masks)]
    height, width = SIZE_HW
    return ImageRecord(
        image_id=image_id,
        file_name=f"holiday/{image_id}.png",
        uri=f"/photos/holiday/{image_id}.png",
        width=width,
        height=height,
        sha256="",
        stage=StageName.FULLY_AUTOMATIC,
        round=round_index,
        status=status,
        error="",
        masks=tuple(
            MaskRecord(
                id=i,
                segmentation=rle,
                bbox=rle_bbox(rle),
                area=rle_area(rle),
                predicted_iou=0.9 + 0.01 * round_index,
                stability_score=0.96,
                crop_box=(0.0, 0.0, float(width), float(height)),
                point_coords=((1.5, 2.5),),
                stage=StageName.FULLY_AUTOMATIC,
                round=round_index,
                source=Source.AUTOMATIC,
                annotator="",
                seconds=0.0,
                num_clicks=0,
                checkpoint="tiny",
            )
            for i, rle in enumerate(rles)
        ),
        drops={},
        annotator_seconds=0.0,
        worker_seconds=0.1,
    )


def read_image(record: ImageRecord) -> Pixels:
    return np.full((record.height, record.width, 3), 30 * record.image_id, dtype=np.uint8)


def refuse_to_read(record: ImageRecord) -> Pixels:
    raise AssertionError(f"image {record.image_id} was read again")


def content(store: LocalStore) -> dict[str, bytes]:
    return {file.path: store.read(file.path) for file in store.list()}


def test_sa1b_files_have_exactly_the_published_fields(out: LocalStore) -> None:
    record = image_record(7)
    export_dataset([record], read_image, ExportFormat.SA1B, out)
    assert sorted(content(out)) == ["sa_7.jpg", "sa_7.json"]
    written = json.loads(out.read("sa_7.json"))
    assert set(written) == {"image", "annotations"}
    assert written["image"] == {
        "image_id": 7,
        "width": 36,
        "height": 24,
        "file_name": "sa_7.jpg",
    }
    for annotation, mask in zip(written["annotations"], record.masks, strict=True):
        assert annotation == {
            "id": 7_000_001 + mask.id,
            "segmentation": {"size": [24, 36], "counts": mask.segmentation.counts},
            "bbox": list(mask.bbox),
            "area": mask.area,
            "predicted_iou": 0.9,
            "stability_score": 0.96,
            "crop_box": [0.0, 0.0, 36.0, 24.0],
            "point_coords": [[1.5, 2.5]],
        }


def test_clicks_that_take_away_are_no_points_of_sa1b() -> None:
    (mask,) = image_record(7, masks=1).masks
    clicks = ((1.5, 2.5), 1), ((9.0, 9.0), 0), ((3.0, 4.0), 1)
    clicked = mask.model_copy(
        update={
            "point_coords": tuple(point for point, _ in clicks),
            "interactions": tuple(
                Interaction(
                    kind="point",
                    coords=point,
                    label=label,
                    output=0,
                    seconds=1.5,
                    predicted_iou=0.9,
                    answer=mask.segmentation,
                )
                for point, label in clicks
            ),
        }
    )
    (annotation,) = sa1b_annotations([clicked])
    assert annotation["point_coords"] == ((1.5, 2.5), (3.0, 4.0))


def test_coco_json_reads_back_to_equal_masks(out: LocalStore) -> None:
    export_dataset([image_record(0), image_record(5)], read_image, ExportFormat.COCO, out)
    written = json.loads(out.read("instances.json"))
    assert written["categories"] == [{"id": 1, "name": "object"}]
    assert [image["source_file_name"] for image in written["images"]] == [
        "holiday/0.png",
        "holiday/5.png",
    ]
    read = [
        decode_rle(Rle.model_validate(annotation["segmentation"]))
        for annotation in written["annotations"]
    ]
    expected = some_masks(0, 3) + some_masks(5, 3)
    assert all(np.array_equal(a, b) for a, b in zip(read, expected, strict=True))
    assert set(written["annotations"][0]) == {
        *("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"),
        *("predicted_iou", "stability_score", "source", "stage"),
    }


def test_pycocotools_opens_the_coco_export(
    out: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO

    export_dataset([image_record(0), image_record(5, masks=0)], read_image, ExportFormat.COCO, out)
    coco = COCO(str(out.root / "instances.json"))
    capsys.readouterr()
    assert coco.getImgIds() == [0, 5]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[0]))
    drawn = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, some_masks(0, 3), strict=True))
    assert [annotation["area"] for annotation in annotations] == [mask.sum() for mask in drawn]


def test_ids_of_annotations_are_unique_over_images_and_never_zero() -> None:
    records = [image_record(image_id) for image_id in (0, 1, 2)]
    ids = [
        annotation["id"]
        for record in records
        for annotation in sa1b_annotations(record.masks, image_id=record.image_id)
    ]
    assert len(set(ids)) == 9
    assert min(ids) == 1


@pytest.mark.parametrize(
    ("form", "path"),
    [(ExportFormat.SA1B, "sa_3.jpg"), (ExportFormat.COCO, "images/000000000003.jpg")],
)
def test_images_are_jpeg_in_the_frame_of_the_masks(
    out: LocalStore, form: ExportFormat, path: str
) -> None:
    export_dataset([image_record(3)], read_image, form, out)
    with Image.open(out.root / path) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (36, 24), "RGB")
        assert np.abs(np.asarray(image).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("form", list(ExportFormat))
def test_records_that_are_not_ok_are_left_out_and_counted(
    out: LocalStore, form: ExportFormat
) -> None:
    records = [
        image_record(0, masks=0),
        image_record(1, masks=0, status=ImageStatus.GIVEN_UP),
        image_record(2),
        image_record(3, masks=0, status=ImageStatus.UNREADABLE),
    ]

    def read_or_fail(record: ImageRecord) -> Pixels:
        if record.image_id == 2:
            raise UnreadableImageError("unreadable", "the file is gone")
        return read_image(record)

    exported = export_dataset(records, read_or_fail, form, out)
    assert exported == Exported(images=1, masks=0, left_out=Counter(unreadable=2, given_up=1))


@pytest.mark.parametrize("form", list(ExportFormat))
def test_images_longer_than_a_jpeg_can_be_are_left_out_and_counted(
    out: LocalStore, form: ExportFormat
) -> None:
    records = [
        image_record(image_id, masks=0).model_copy(update={"width": width, "height": height})
        for image_id, (width, height) in enumerate([(65_501, 1), (65_500, 1), (1, 65_501)])
    ]
    exported = export_dataset(records, read_image, form, out)
    assert exported == Exported(images=1, left_out=Counter(too_long_for_jpeg=2))
    pictures = [path for path in content(out) if path.endswith(".jpg")]
    assert pictures == [IMAGES[form].format(1)]


@pytest.mark.parametrize("form", list(ExportFormat))
def test_an_export_run_twice_reads_no_image_again_and_changes_nothing(
    out: LocalStore, form: ExportFormat
) -> None:
    records = [image_record(0), image_record(1)]
    first = export_dataset(records, read_image, form, out)
    before = content(out)
    assert export_dataset(records, refuse_to_read, form, out) == first
    assert content(out) == before


@pytest.mark.parametrize("form", list(ExportFormat))
def test_an_export_that_was_stopped_goes_on_to_the_same_files(
    tmp_path: Path, form: ExportFormat
) -> None:
    records = [image_record(image_id) for image_id in range(4)]
    stopped, whole = LocalStore(tmp_path / "stopped"), LocalStore(tmp_path / "whole")

    def read_until_the_third(record: ImageRecord) -> Pixels:
        if record.image_id == 2:
            raise KeyboardInterrupt
        return read_image(record)

    with pytest.raises(KeyboardInterrupt):
        export_dataset(records, read_until_the_third, form, stopped)
    assert not stopped.exists("instances.json")
    export_dataset(records, read_image, form, stopped)
    export_dataset(records, read_image, form, whole)
    assert content(stopped) == content(whole)


@pytest.mark.parametrize("form", list(ExportFormat))
def test_a_folder_with_another_export_is_refused(out: LocalStore, form: ExportFormat) -> None:
    export_dataset([image_record(0)], read_image, form, out)
    with pytest.raises(EngineError, match=r"\.json exists and is of another export"):
        export_dataset([image_record(0, round_index=1)], read_image, form, out)


@pytest.mark.parametrize("form", list(ExportFormat))
def test_two_records_of_one_image_are_refused(out: LocalStore, form: ExportFormat) -> None:
    records = [image_record(0), image_record(0, round_index=1)]
    with pytest.raises(EngineError, match=r"another export|two records are of image 0"):
        export_dataset(records, read_image, form, out)


def test_sa1b_is_written_record_by_record(out: LocalStore) -> None:
    written: list[int] = []

    def records() -> Iterator[ImageRecord]:
        for image_id in range(3):
            written.append(len(out.list()))
            yield image_record(image_id)

    export_dataset(records(), read_image, ExportFormat.SA1B, out)
    assert written == [0, 2, 4]


def test_pixels_outside_the_frame_of_the_masks_are_refused(out: LocalStore) -> None:
    with pytest.raises(
        ValueError, match=r"image 0 .* shape \(9, 9, 3\), expected .* \(24, 36, 3\)"
    ):
        export_dataset(
            [image_record(0)], lambda _: np.zeros((9, 9, 3), np.uint8), ExportFormat.SA1B, out
        )


def start_run(tmp_path: Path, num_images: int) -> tuple[LocalStore, Corpus, EngineConfig]:
    """A corpus of drawn photographs twice the work size, and a frozen config of two rounds."""
    photos = tmp_path / "photos"
    photos.mkdir(parents=True)
    for i in range(num_images):
        Image.new("RGB", (72, 48), (30 * i, 90, 200)).save(photos / f"{i}.png")
    source = FolderSource(name="photos", path=str(photos))
    automatic = RoundConfig(stage=StageName.FULLY_AUTOMATIC, source="photos")
    config = EngineConfig(
        checkpoint="none",
        sources=(source,),
        work_size=WorkSize(max_short_side=24),
        rounds=(automatic, automatic),
    )
    store = LocalStore(tmp_path / "run")
    freeze_config(store, config)
    return store, build_corpus(store, config.sources, config.corpus), config


def seal_round(store: LocalStore, config: EngineConfig, records: list[ImageRecord]) -> None:
    """One shard that holds all records, sealed as round 0."""
    folder, stage = config.round_folder(0), StageName.FULLY_AUTOMATIC
    made_by = {"round": 0, "stage": stage, "checkpoint": "none", "config_sha256": config.sha256}
    ids = np.asarray([record.image_id for record in records])
    plan = freeze_plan(store, folder, RoundPlan(PlanHeader(**made_by), ids, images_per_shard=8))
    path = layout.shard_path(layout.shards_folder(folder), 0)
    publish_shard(store, path, ShardHeader(shard=0, **made_by), records)
    seal(store, folder, plan)


def sealed_run(folder: Path) -> LocalStore:
    run, corpus, config = start_run(folder, num_images=2)
    records = [
        image_record(row.image_id).model_copy(update={"uri": row.uri, "file_name": row.file_name})
        for row in corpus.rows([0, 1])
    ]
    seal_round(run, config, records)
    return run


def forget(out: LocalStore, *kept: str) -> None:
    """Leave these files alone, as if the export had been killed."""
    for path in content(out).keys() - set(kept):
        (out.root / path).unlink()


@pytest.mark.parametrize(
    ("form", "first_image"), [("sa1b", "sa_0.jpg"), ("coco", "images/000000000000.jpg")]
)
def test_an_export_that_was_killed_is_gone_on_with_by_its_own_run_alone(
    tmp_path: Path, out: LocalStore, form: str, first_image: str
) -> None:
    run, other = sealed_run(tmp_path / "one"), sealed_run(tmp_path / "two")
    list(export_run(run, out, form))
    whole = content(out)
    forget(out, "exported_from", first_image)
    half = out.root / f".instances.json.0123{STAGED_SUFFIX}"
    half.touch()
    os.utime(half, (0, 0))
    with pytest.raises(EngineError, match=r"is of another export: .* and this one is .*;"):
        list(export_run(other, out, form))
    assert sorted(content(out)) == ["exported_from", first_image]
    assert half.exists()
    list(export_run(run, out, form))
    assert content(out) == whole
    assert not half.exists()


def test_a_folder_is_of_one_format_and_of_one_choice_of_stages(
    tmp_path: Path, out: LocalStore
) -> None:
    run = sealed_run(tmp_path)
    list(export_run(run, out, "coco"))
    with pytest.raises(EngineError, match="is of another export"):
        list(export_run(run, out, "sa1b"))
    with pytest.raises(EngineError, match="is of another export"):
        list(export_run(run, out, "coco", StageName.FULLY_AUTOMATIC))


@pytest.mark.parametrize("form", list(ExportFormat))
def test_images_that_an_earlier_version_exported_are_refused_as_of_nobody_knows_which_run(
    tmp_path: Path, out: LocalStore, form: ExportFormat
) -> None:
    run = sealed_run(tmp_path)
    list(export_run(run, out, form))
    (out.root / "exported_from").unlink()
    before = content(out)
    with pytest.raises(EngineError, match="holds images, and no exported_from says of which run"):
        list(export_run(run, out, form))
    assert content(out) == before


def test_a_run_without_an_id_is_told_by_where_it_lies(tmp_path: Path, out: LocalStore) -> None:
    runs = sealed_run(tmp_path / "one"), sealed_run(tmp_path / "two")
    for run in runs:
        (run.root / layout.RUN_ID).unlink()
    list(export_run(runs[0], out, "sa1b"))
    list(export_run(runs[0], out, "sa1b"))
    with pytest.raises(EngineError, match="is of another export"):
        list(export_run(runs[1], out, "sa1b"))


def test_a_run_is_exported_from_its_sealed_rounds_at_its_work_size(
    tmp_path: Path, out: LocalStore
) -> None:
    run, corpus, config = start_run(tmp_path, num_images=2)
    with pytest.raises(EngineError, match="has no sealed round to export"):
        list(export_run(run, out, "coco"))
    records = [
        image_record(row.image_id).model_copy(update={"uri": row.uri, "file_name": row.file_name})
        for row in corpus.rows([0, 1])
    ]
    seal_round(run, config, records)
    lines = list(export_run(run, LocalStore(tmp_path / "exported"), "coco"))
    assert lines[0].startswith("2 images with 6 masks in ")
    assert lines[1:] == ["left out: rounds/01-fully_automatic, which is not sealed yet"]
    written = json.loads((tmp_path / "exported/instances.json").read_bytes())
    assert [image["source_file_name"] for image in written["images"]] == ["0.png", "1.png"]
    with Image.open(tmp_path / "exported/images/000000000001.jpg") as image:
        assert image.size == (36, 24)


def test_an_unknown_format_names_those_that_exist(out: LocalStore) -> None:
    with pytest.raises(ConfigError, match="no export format 'yolo'; expected sa1b or coco"):
        list(export_run(out, out, "yolo"))
