"""Masks as a page saves them: checked before they are kept, and made into records."""

from engine.errors import EngineError
from engine.manifest import PlanHeader
from stages.records import DraftMask, MaskRecord, Record, Rle, Source
from stages.rle import rle_area, rle_bbox, uncompressed_counts

MAX_INTERACTIONS = 2000


class InvalidMaskError(EngineError):
    """What a page sent is no mask of this image."""


class SavedMask(Record):
    mask_id: str
    annotator: str
    """Who saved it last; empty for one that nobody has touched since the model made it."""
    mask: DraftMask
    base: Rle | None = None
    """Of an automatic mask that was corrected: what it was."""


def check_mask(mask: DraftMask, size_hw: tuple[int, int]) -> None:
    """
    Raises:
        InvalidMaskError: its RLE is no mask of this image, or its log is too long.
    """
    for rle in _rles_of(mask):
        check_rle(rle, size_hw)
    if len(mask.interactions) > MAX_INTERACTIONS:
        raise InvalidMaskError(
            f"{len(mask.interactions)} interactions; expected at most {MAX_INTERACTIONS}"
        )


def check_rle(rle: Rle, size_hw: tuple[int, int]) -> None:
    """
    Raises:
        InvalidMaskError: another frame, no RLE, or runs that do not fill the frame.
    """
    if tuple(rle.size) != size_hw:
        raise InvalidMaskError(f"a mask of {rle.size}; the image is {size_hw}")
    try:
        runs = uncompressed_counts(rle.counts)
    except (ValueError, UnicodeEncodeError) as error:
        raise InvalidMaskError(f"a mask's counts are no RLE: {error}") from error
    if len(runs) == 0 or runs.min() < 0 or int(runs.sum()) != size_hw[0] * size_hw[1]:
        raise InvalidMaskError(f"a mask's runs do not fill {size_hw[0]} x {size_hw[1]} pixels")


def _rles_of(mask: DraftMask) -> list[Rle]:
    strokes = [action.stroke for action in mask.interactions if action.stroke is not None]
    return [mask.segmentation, *(action.answer for action in mask.interactions), *strokes]


def mask_record(number: int, saved: SavedMask, header: PlanHeader) -> MaskRecord:
    """
    Args:
        number: its id within its image.
        header: of the round that it is made in.
    """
    mask = saved.mask
    height, width = mask.segmentation.size
    points = [a.coords for a in mask.interactions if a.kind == "point"]
    return MaskRecord(
        id=number,
        segmentation=mask.segmentation,
        bbox=rle_bbox(mask.segmentation),
        area=rle_area(mask.segmentation),
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        crop_box=(0.0, 0.0, float(width), float(height)),
        point_coords=tuple((x, y) for x, y in points),
        stage=header.stage,
        round=header.round,
        source=Source.ANNOTATED if saved.annotator else Source.AUTOMATIC,
        annotator=saved.annotator,
        seconds=mask.seconds,
        num_clicks=sum(action.kind != "brush" for action in mask.interactions),
        checkpoint=header.checkpoint,
        interactions=mask.interactions,
    )
