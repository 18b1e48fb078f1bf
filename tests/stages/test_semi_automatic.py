import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fakes import ColourSam, tiny_sam
from model.detector import Detections, DetectorConfig, ObjectDetector
from stages.base import Provenance, StageOutput
from stages.filters import FilterConfig
from stages.predictor import Image, Predictor, embed
from stages.prompts import mask_iou
from stages.records import Source, StageName
from stages.rle import decode_rle
from stages.semi_automatic import SemiAutomatic, SemiAutomaticConfig, detect

SIZE_HW = (120, 160)  # an input square of 128 holds it at 0.8 of its size
PROVENANCE = Provenance(round=4, checkpoint="colours@0123456789ab")
RED, GREEN = (20, 16, 80, 56), (100, 30, 140, 90)


class KnownBoxes:
    """A detector that was told where the objects are, in the image's frame."""

    def __init__(self, *found: tuple[tuple[int, int, int, int], float]) -> None:
        boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4)
        self._found = Detections(boxes * 0.8, torch.tensor([score for _, score in found]))

    def predict(self, image_embeddings: Tensor) -> list[Detections]:
        assert len(image_embeddings) == 1
        return [self._found]


def scene() -> NDArray[np.uint8]:
    pixels = np.zeros((*SIZE_HW, 3), dtype=np.uint8)
    for (x0, y0, x1, y1), colour in ((RED, (250, 30, 30)), (GREEN, (30, 250, 30))):
        pixels[y0:y1, x0:x1] = colour
    return pixels


def run(detector: KnownBoxes, config: SemiAutomaticConfig | None = None) -> StageOutput:
    stage = SemiAutomatic(
        ColourSam(),  # type: ignore[arg-type]
        detector,  # type: ignore[arg-type]
        config or SemiAutomaticConfig(),
        PROVENANCE,
    )
    return stage.run(Image(3, scene()), np.random.default_rng(0))


def test_boxes_become_locked_masks_of_the_objects_within() -> None:
    output = run(KnownBoxes((RED, 0.9), (GREEN, 0.8)))
    assert len(output.masks) == 2
    for mask, (x0, y0, x1, y1) in zip(output.masks, (RED, GREEN), strict=True):
        truth = np.zeros(SIZE_HW, dtype=bool)
        truth[y0:y1, x0:x1] = True
        assert mask_iou(decode_rle(mask.segmentation), truth) > 0.9
        assert (mask.stage, mask.source) == (StageName.SEMI_AUTOMATIC, Source.PREFILLED)
        assert (mask.round, mask.checkpoint) == (4, PROVENANCE.checkpoint)
        assert (mask.annotator, mask.seconds, mask.num_clicks) == ("", 0, 0)
        assert mask.point_coords == ()
        assert mask.crop_box == (0, 0, 160, 120)


def test_prefilled_masks_may_be_made_of_superpixels() -> None:
    plain, snapped = (
        sorted(
            run(KnownBoxes((RED, 0.9), (GREEN, 0.8)), SemiAutomaticConfig(snap=snap)).masks,
            key=lambda mask: mask.bbox,
        )
        for snap in (False, True)
    )
    assert len(plain) == len(snapped) == 2
    for rough, mask, (x0, y0, x1, y1) in zip(plain, snapped, (RED, GREEN), strict=True):
        assert mask.segmentation != rough.segmentation
        assert mask.bbox == pytest.approx((x0, y0, x1 - x0, y1 - y0), abs=2)


def test_boxes_the_detector_is_unsure_of_are_not_shown_to_the_model() -> None:
    output = run(KnownBoxes((RED, 0.9), (GREEN, 0.29)))
    assert len(output.masks) == 1


def test_two_boxes_of_one_object_give_one_mask() -> None:
    shifted = (22, 16, 82, 56)
    output = run(KnownBoxes((RED, 0.5), (shifted, 0.9)))
    assert len(output.masks) == 1
    assert output.drops["duplicate"] == 1


def test_different_boxes_that_lead_to_one_mask_give_it_once() -> None:
    inner = (40, 30, 60, 42)  # the colour fills all of the red square
    output = run(KnownBoxes((RED, 0.9), (inner, 0.8)))
    assert len(output.masks) == 1
    assert output.drops["duplicate"] == 1


def test_only_the_surest_boxes_are_taken_when_there_are_too_many() -> None:
    config = SemiAutomaticConfig(max_boxes=1)
    (mask,) = run(KnownBoxes((RED, 0.4), (GREEN, 0.9)), config).masks
    assert mask.bbox[0] == pytest.approx(GREEN[0], abs=3)


def test_masks_the_model_is_unsure_of_are_left_to_annotators() -> None:
    config = SemiAutomaticConfig(filters=FilterConfig(pred_iou_thresh=0.96))
    output = run(KnownBoxes((RED, 0.9), (GREEN, 0.8)), config)
    assert output.masks == ()
    assert output.drops == {"low_predicted_iou": 2}


def test_every_box_becomes_a_mask_or_is_dropped_for_one_reason() -> None:
    boxes = [(RED, 0.9), ((22, 16, 82, 56), 0.8), (GREEN, 0.7), (GREEN, 0.1), ((1, 90, 9, 99), 0.4)]
    output = run(KnownBoxes(*boxes), SemiAutomaticConfig(max_boxes=2))
    assert len(output.masks) == 2
    assert output.drops == {"low_detector_score": 1, "duplicate": 1, "too_many_boxes": 1}


def test_the_size_of_decoder_batches_does_not_change_the_masks() -> None:
    detector = KnownBoxes((RED, 0.9), (GREEN, 0.8))
    assert run(detector, SemiAutomaticConfig(boxes_per_batch=1)) == run(detector)


def test_an_image_in_which_nothing_is_detected_has_nothing_prefilled() -> None:
    assert run(KnownBoxes()) == StageOutput(masks=(), drops={})


def test_the_same_image_gives_the_same_masks_twice() -> None:
    detector = KnownBoxes((RED, 0.9), (GREEN, 0.8))
    assert run(detector) == run(detector)


@pytest.mark.parametrize("size_hw", [(90, 130), (1, 1), (400, 9)])
def test_an_untrained_detector_proposes_boxes_within_the_image(size_hw: tuple[int, int]) -> None:
    sam = tiny_sam()
    torch.manual_seed(0)
    detector = ObjectDetector(DetectorConfig(embed_dim=32, hidden_dim=16)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    boxes, scores = detect(detector, Predictor(sam, size_hw, embed(sam, pixels)))
    assert len(boxes) == len(scores) > 0
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size_hw[::-1]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("size_hw", [(1, 1), (400, 9)])
def test_images_of_any_size_can_be_prefilled(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    detector = ObjectDetector(DetectorConfig(embed_dim=32, hidden_dim=16, max_detections=20)).eval()
    config = SemiAutomaticConfig(
        detector_score_thresh=0.0,
        filters=FilterConfig(pred_iou_thresh=-10, stability_score_thresh=0),
    )
    stage = SemiAutomatic(tiny_sam(), detector, config, PROVENANCE)
    pixels = np.zeros((*size_hw, 3), dtype=np.uint8)
    for mask in stage.run(Image(0, pixels), np.random.default_rng(0)).masks:
        assert mask.segmentation.size == size_hw
        assert mask.area > 0
