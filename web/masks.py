"""Masks as a page saves them: checked before they are kept, and made into records.

Whatever passes is read again by others, written into shards, and drawn by pycocotools, which trusts
any string. One bad number would do harm long after its request, so nothing is kept unchecked. That
numbers are numbers, the records see to.
"""

from collections.abc import Iterator

from engine.errors import EngineError
from engine.manifest import PlanHeader
from stages.records import DraftMask, Interaction, MaskRecord, Record, Rle, Source
from stages.rle import rle_area, rle_bbox, uncompressed_counts

MAX_INTERACTIONS = 2000
MAX_SECONDS = 24 * 3600.0
MAX_SCORE = 1e3
"""Either side of zero: the IoU head is a line without bounds, but its sums must stay numbers."""
NUM_COORDS = {"point": 2, "box": 4, "brush": 4}


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
        InvalidMaskError: its RLE is no mask of this image, its log is too long, or says what cannot
            have happened.
    """
    if len(mask.interactions) > MAX_INTERACTIONS:
        raise InvalidMaskError(
            f"{len(mask.interactions)} interactions; expected at most {MAX_INTERACTIONS}"
        )
    for fault in _faults(mask, size_hw):
        raise InvalidMaskError(fault)
    check_rle(mask.segmentation, size_hw)
    if rle_area(mask.segmentation) == 0:
        raise InvalidMaskError("a mask without a pixel; delete it instead")
    for action in mask.interactions:
        check_rle(action.answer, size_hw)
        if action.stroke is not None:
            check_rle(action.stroke, size_hw)


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
    pixels = size_hw[0] * size_hw[1]
    # Each run before their sum: no one of them overflows then, in 64 bits or pycocotools' 32.
    if len(runs) == 0 or runs.min() < 0 or runs.max() > pixels or int(runs.sum()) != pixels:
        raise InvalidMaskError(f"a mask's runs do not fill {size_hw[0]} x {size_hw[1]} pixels")


def _faults(mask: DraftMask, size_hw: tuple[int, int]) -> Iterator[str]:
    if mask.seconds > MAX_SECONDS:
        yield f"{mask.seconds} seconds; expected at most {MAX_SECONDS:.0f}"
    if abs(mask.predicted_iou) > MAX_SCORE:
        yield f"a predicted IoU of {mask.predicted_iou}"
    if not 0 <= mask.stability_score <= 1:
        yield f"a stability score of {mask.stability_score}; expected 0 to 1"
    for number, action in enumerate(mask.interactions):
        for fault in _action_faults(action, size_hw):
            yield f"interaction {number}: {fault}"


def _action_faults(action: Interaction, size_hw: tuple[int, int]) -> Iterator[str]:
    height, width = size_hw
    sides = (width, height, width, height)
    if action.seconds > MAX_SECONDS:
        yield f"{action.seconds} seconds; expected at most {MAX_SECONDS:.0f}"
    if len(action.coords) != NUM_COORDS[action.kind]:
        yield f"{len(action.coords)} coords of a {action.kind}"
    elif not all(0 <= at <= side for at, side in zip(action.coords, sides, strict=False)):
        yield f"coords {action.coords} beyond the image"
    asked_model = action.output is not None and action.predicted_iou is not None
    of_model = (action.output, action.predicted_iou, action.snapped, action.zoomed_in)
    asked_none = all(value is None for value in of_model)
    if action.kind == "brush" and not (asked_none and action.stroke is not None):
        yield "a brush has a stroke and asks no model"
    if action.kind != "brush" and not (asked_model and action.stroke is None):
        yield f"a {action.kind} has a model's answer and no stroke"
    if action.output not in (None, 0, 1, 2):
        yield f"output {action.output}; expected 0, 1 or 2"
    if abs(action.predicted_iou or 0.0) > MAX_SCORE:
        yield f"a predicted IoU of {action.predicted_iou}"


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
