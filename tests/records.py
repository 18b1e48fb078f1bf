"""Records to store: one with every field filled, and plain ones by number."""

from stages.records import (
    ImageRecord,
    ImageStatus,
    Interaction,
    MaskRecord,
    Rle,
    Source,
    StageName,
)

RLE = Rle(size=(4, 3), counts="12202O")


def mask_record(number: int, **changes: object) -> MaskRecord:
    mask = MaskRecord(
        id=number,
        segmentation=RLE,
        bbox=(0.0, 1.0, 3.0, 3.0),
        area=5,
        predicted_iou=0.9375,
        stability_score=1.0,
        crop_box=(0.0, 0.0, 3.0, 4.0),
        point_coords=((1.5, 2.25),),
        stage=StageName.FULLY_AUTOMATIC,
        round=3,
        source=Source.AUTOMATIC,
        annotator="",
        seconds=0.0,
        num_clicks=0,
        checkpoint="tiny@0123456789ab",
    )
    return mask.model_copy(update=changes)


def image_record(image_id: int, *, num_masks: int = 1, **changes: object) -> ImageRecord:
    record = ImageRecord(
        image_id=image_id,
        file_name=f"photos/{image_id}.jpg",
        uri=f"/data/photos/{image_id}.jpg",
        width=3,
        height=4,
        sha256="ab" * 32,
        stage=StageName.FULLY_AUTOMATIC,
        round=3,
        status=ImageStatus.OK,
        error="",
        masks=tuple(mask_record(number) for number in range(num_masks)),
        drops={"duplicate": 7, "low_predicted_iou": 2**40},
        annotator_seconds=9.5,
        worker_seconds=0.125,
    )
    return record.model_copy(update=changes)


def full_record() -> ImageRecord:
    """Every field filled with something that is easy to get wrong."""
    interactions = (
        Interaction(
            kind="point",
            coords=(1.5, 2.0),
            label=1,
            output=2,
            seconds=1.5,
            predicted_iou=1.0625,
            answer=RLE,
            snapped=True,
            zoomed_in=False,
        ),
        Interaction(
            kind="box",
            coords=(0.0, 1.0, 2.0, 3.0),
            label=1,
            output=0,
            seconds=3.0,
            predicted_iou=0.5,
            answer=RLE,
            snapped=False,
            zoomed_in=True,
        ),
        Interaction(
            kind="brush",
            coords=(0.0, 1.0, 2.0, 3.0),
            label=0,
            output=None,
            seconds=2.25,
            predicted_iou=None,
            answer=Rle(size=(4, 3), counts="<"),
        ),
    )
    drawn = mask_record(
        1,
        predicted_iou=-0.25,
        point_coords=((1.5, 2.25), (0.0, 0.0)),
        stage=StageName.SEMI_AUTOMATIC,
        source=Source.ANNOTATED,
        annotator="Zoë",
        seconds=6.75,
        num_clicks=2,
        interactions=interactions,
    )
    prefilled = mask_record(
        0, point_coords=(), stage=StageName.SEMI_AUTOMATIC, source=Source.PREFILLED
    )
    return image_record(
        2**40,
        num_masks=0,
        file_name="日本/ä b.jpg",
        stage=StageName.SEMI_AUTOMATIC,
        status=ImageStatus.SKIPPED,
        error='the "annotator"\nlooked away',
        masks=(prefilled, drawn),
        drops={"low_stability": 3, "duplicate": 0},
        annotator_seconds=9.5,
    )
