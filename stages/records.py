"""The stored format, field by field: one ImageRecord a row, its masks within it.

`MaskRecord` carries the fields of an SA-1B annotation under SA-1B's names, and behind them what
this engine knows more: which stage, round, annotator and checkpoint made the mask, and how.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class Record(BaseModel):
    """Base of everything stored: immutable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StageName(StrEnum):
    ASSISTED_MANUAL = "assisted_manual"
    SEMI_AUTOMATIC = "semi_automatic"
    FULLY_AUTOMATIC = "fully_automatic"


class Source(StrEnum):
    """Who drew a mask: a person (or a simulated one), or the model with nobody looking."""

    ANNOTATED = "annotated"
    PREFILLED = "prefilled"
    AUTOMATIC = "automatic"


class ImageStatus(StrEnum):
    OK = "ok"
    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"
    """An annotator looked and passed; the reason is in `error`."""
    REJECTED = "rejected"
    """A reviewer refused the masks of this image; the reason is in `error`."""
    WITHDRAWN = "withdrawn"
    """Nobody was asked any more: the round had as many masks as it wanted."""
    GIVEN_UP = "given_up"
    """Every attempt to work on this image, alone, ended a worker or raised."""


Seconds = Annotated[FiniteFloat, Field(ge=0)]


class Rle(Record):
    """COCO's compressed run-length encoding, columns first."""

    size: tuple[int, int]
    """(height, width)."""
    counts: str


class Interaction(Record):
    """One action of an annotator and the mask it led to, so that a log replays to the same mask."""

    kind: Literal["point", "box", "brush"]
    coords: tuple[FiniteFloat, ...]
    """point: (x, y); box: (x0, y0, x1, y1); brush: the box of the touched pixels. Image pixels."""
    label: Literal[0, 1]
    """1 adds to the mask, 0 removes from it."""
    output: int | None
    """Which of the masks offered was chosen: 0, 1, 2; None after a brush."""
    seconds: Seconds
    """Active time this action took."""
    predicted_iou: FiniteFloat | None
    """The model's own estimate of its answer; None after a brush, which asks no model."""
    answer: Rle
    """The mask after this action."""
    stroke: Rle | None = None
    """Every pixel a brush went over, whether it changed or not; None for the model's answers."""
    snapped: bool | None = None
    """Whether the answer was laid on superpixels (`stages/snapped_upscale.py`); None after a brush,
    and in logs that do not say."""
    zoomed_in: bool | None = None
    """Whether there was a second look at a crop (`stages/zoom_in.py`); None as above."""


class MaskRecord(Record):
    id: int
    """Unique within its image."""
    segmentation: Rle
    bbox: tuple[float, float, float, float]
    """XYWH, image pixels."""
    area: int
    """Pixels."""
    predicted_iou: float
    """Regressed by the IoU head, not clamped: may slightly exceed 1. Of a mask made of superpixels
    its weighted geometric mean with the stability score (`Cuts` in stages/superpixels.py), or the
    word of `model/mask_scorer.py` or, after a click, `model/click_scorer.py` alone."""
    stability_score: float
    """IoU between the mask cut at +offset and the mask cut at -offset. Of a mask made of
    superpixels their agreement (`stages/snapped_upscale.py`)."""
    crop_box: tuple[float, float, float, float]
    """XYWH of the window the mask was found in, image pixels."""
    point_coords: tuple[tuple[float, float], ...]
    """(x, y) of the points that prompted the mask, image pixels; empty for a box. Of clicks all,
    whatever their label, which `interactions` has."""
    stage: StageName
    round: int
    source: Source
    annotator: str
    """Who answered; empty for masks that nobody looked at."""
    seconds: float
    """Active annotator time, all interactions."""
    num_clicks: int
    checkpoint: str
    """Name and hash of the checkpoint that answered."""
    interactions: tuple[Interaction, ...] = ()


class DraftMask(Record):
    """A mask that an annotator has accepted, as it is kept until its image is handed in."""

    segmentation: Rle
    predicted_iou: FiniteFloat
    stability_score: FiniteFloat
    seconds: Seconds
    interactions: tuple[Interaction, ...]


class Submission(Record):
    """What an annotator hands in for one image."""

    masks: tuple[MaskRecord, ...] = ()
    seconds: float
    """Active time on the image, searching and discarded masks included."""
    status: ImageStatus = ImageStatus.OK
    """Otherwise skipped or unreadable."""
    error: str = ""
    """Why the status is not ok; empty when it is."""
    flagged: tuple[int, ...] = ()
    """Ids of prefilled masks that are wrong: they are dropped, and counted."""


class Verdict(StrEnum):
    GOOD = "good"
    """As the reviewer leaves it: what they corrected takes the place of what was handed in."""
    REDO = "redo"
    """Back to the queue, with its masks and the reviewer's note."""
    REJECT = "reject"
    """None of the image's masks is kept."""


class Review(Record):
    """What a second person makes of the masks of one image."""

    verdict: Verdict
    note: str = ""
    """Why, where the verdict is not good."""
    masks: tuple[MaskRecord, ...] = ()
    """As the reviewer leaves them; the verdict says whether they count."""
    flagged: tuple[int, ...] = ()
    """Ids of prefilled masks that are wrong, as in a submission."""
    seconds: float
    """Active time of the reviewer."""
    ious: tuple[float, ...] = ()
    """Of each mask looked at with what became of it: 1 where it was left alone, 0 where deleted."""
    deleted: int = 0
    added: int = 0
    """Masks that were missing."""


class ImageRecord(Record):
    image_id: int
    """Row of the image in the run's corpus."""
    file_name: str
    """Path relative to its source, for people and for export."""
    uri: str
    width: int
    height: int
    """Frame of the masks: the image upright, after resizing to the work size."""
    sha256: str
    """Of the file's bytes; empty when they could not be read."""
    stage: StageName
    round: int
    status: ImageStatus
    error: str
    """Why the status is not ok; empty when it is."""
    masks: tuple[MaskRecord, ...]
    drops: dict[str, int]
    """Refused candidates by reason."""
    annotator_seconds: float
    """Active time of an annotator on this image, searching and discarded masks included."""
    worker_seconds: float
    """Wall time a worker spent on this image."""
