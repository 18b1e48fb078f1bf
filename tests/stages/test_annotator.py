import numpy as np
import pytest

from fakes import TruthfulPredictor, rectangle, tiny_sam
from stages.annotator import SimulatedAnnotator, SimulatedAnnotatorConfig
from stages.assisted_manual import replay
from stages.base import Provenance
from stages.predictor import Predictor, embed
from stages.prompts import centre_click, mask_iou
from stages.records import StageName, Submission
from stages.rle import Mask, decode_rle

SIZE_HW = (100, 140)
PROVENANCE = Provenance(round=1, checkpoint="tiny@0123456789ab")
SMALL = rectangle(SIZE_HW, 70, 100, 90, 120)
MEDIUM = rectangle(SIZE_HW, 10, 90, 40, 130)
LARGE = rectangle(SIZE_HW, 10, 10, 70, 80)
CLICKS_ONLY = SimulatedAnnotatorConfig(box_share=0.0, max_strokes=0, patience=100)


def annotate(
    predictor: object,
    truths: list[Mask],
    config: SimulatedAnnotatorConfig = CLICKS_ONLY,
    *,
    prefilled: tuple[Mask, ...] = (),
    max_mask_seconds: float = 30.0,
    seed: int = 0,
) -> Submission:
    annotator = SimulatedAnnotator(config, max_mask_seconds=max_mask_seconds)
    return annotator.annotate(
        predictor,  # type: ignore[arg-type]
        truths,
        prefilled=prefilled,
        stage=StageName.ASSISTED_MANUAL,
        provenance=PROVENANCE,
        rng=np.random.default_rng(seed),
    )


def test_a_mask_that_is_right_at_once_costs_finding_and_one_click() -> None:
    submission = annotate(TruthfulPredictor([LARGE]), [LARGE])
    (mask,) = submission.masks
    assert (mask.seconds, mask.num_clicks) == (1 + 1.5, 1)
    assert submission.seconds == 2.5
    assert mask.point_coords == (centre_click(LARGE),)
    assert (mask.annotator, mask.round, mask.stage) == ("simulated", 1, StageName.ASSISTED_MANUAL)


def test_the_output_that_is_meant_is_chosen_and_not_the_most_confident() -> None:
    (mask,) = annotate(TruthfulPredictor([SMALL]), [SMALL]).masks
    assert np.array_equal(decode_rle(mask.segmentation), SMALL)
    assert mask.interactions[0].output == 0


def test_every_correction_costs_one_more_click_and_goes_to_the_largest_error() -> None:
    predictor = TruthfulPredictor([LARGE], grown=4, reach=30)
    config = CLICKS_ONLY.model_copy(update={"target_iou": 0.97})
    (mask,) = annotate(predictor, [LARGE], config).masks
    assert mask.num_clicks > 1
    assert mask.seconds == 1 + 1.5 * mask.num_clicks
    assert [action.label for action in mask.interactions[1:]] == [0] * (mask.num_clicks - 1)
    for action in mask.interactions[1:]:
        x, y = (int(value) for value in action.coords)
        assert not LARGE[y, x]
    assert mask_iou(decode_rle(mask.segmentation), LARGE) >= 0.97


def test_a_box_costs_two_clicks_and_goes_around_the_object() -> None:
    config = CLICKS_ONLY.model_copy(update={"box_share": 1.0})
    (mask,) = annotate(TruthfulPredictor([MEDIUM]), [MEDIUM], config).masks
    assert mask.seconds == 1 + 3
    assert mask.interactions[0].coords == (90, 10, 129, 39)
    assert mask.point_coords == ()


def test_a_share_of_the_masks_begins_with_a_box() -> None:
    corners = [(12 * row, 14 * column) for row in range(8) for column in range(9)]
    truths = [rectangle(SIZE_HW, y, x, y + 10, x + 11) for y, x in corners]
    config = CLICKS_ONLY.model_copy(update={"box_share": 0.25})
    masks = annotate(TruthfulPredictor(truths), truths, config).masks
    boxes = sum(mask.interactions[0].kind == "box" for mask in masks)
    assert len(masks) == 72
    assert 8 <= boxes <= 30


def test_the_brush_mends_what_clicks_do_not_and_costs_its_own_time() -> None:
    config = SimulatedAnnotatorConfig(box_share=0.0, max_clicks=2, target_iou=0.99)
    (mask,) = annotate(TruthfulPredictor([LARGE], grown=3), [LARGE], config).masks
    assert mask_iou(decode_rle(mask.segmentation), LARGE) >= 0.99
    kinds = [action.kind for action in mask.interactions]
    assert kinds == ["point", "point", "brush"]
    ring = 66 * 76 - 60 * 70 - 4 * 6  # a cross of 3 pixels dilates corners by 6 less each
    stroke = mask.interactions[2]
    assert stroke.label == 0
    assert stroke.seconds == pytest.approx(2 + np.sqrt(ring) / 100)
    assert mask.seconds == pytest.approx(1 + 2 * 1.5 + stroke.seconds)
    assert mask.num_clicks == 2


def test_large_objects_come_before_small_ones() -> None:
    truths = [SMALL, LARGE, MEDIUM]
    masks = annotate(TruthfulPredictor(truths), truths).masks
    assert [mask.area for mask in masks] == [LARGE.sum(), MEDIUM.sum(), SMALL.sum()]
    assert [mask.id for mask in masks] == [0, 1, 2]


def test_the_image_ends_with_the_first_mask_that_took_too_long() -> None:
    truths = [SMALL, LARGE, MEDIUM]
    config = CLICKS_ONLY.model_copy(update={"target_iou": 0.99, "max_strokes": 8})
    predictor = TruthfulPredictor(truths, grown=3)
    masks = annotate(predictor, truths, config, max_mask_seconds=10.0).masks
    assert [mask.area for mask in masks] == [LARGE.sum()]  # the slow one stays
    assert masks[0].seconds > 10


def test_nobody_clicks_beyond_the_time_for_one_mask() -> None:
    (mask,) = annotate(TruthfulPredictor([LARGE], grown=3), [LARGE], max_mask_seconds=6.0).masks
    assert mask.seconds == 1 + 3 * 1.5


def test_nobody_clicks_more_often_than_allowed() -> None:
    config = CLICKS_ONLY.model_copy(update={"max_clicks": 4})
    (mask,) = annotate(TruthfulPredictor([LARGE], grown=5), [LARGE], config).masks
    assert mask.num_clicks == 4


def test_who_sees_that_clicks_do_not_help_takes_up_the_brush() -> None:
    config = SimulatedAnnotatorConfig(box_share=0.0, patience=2, target_iou=0.99)
    (mask,) = annotate(TruthfulPredictor([LARGE], grown=3), [LARGE], config).masks
    assert [action.kind for action in mask.interactions] == ["point", "point", "point", "brush"]


def test_nobody_stops_clicking_while_clicks_help() -> None:
    predictor = TruthfulPredictor([LARGE], grown=4, reach=30)
    config = CLICKS_ONLY.model_copy(update={"target_iou": 0.97})
    hasty = config.model_copy(update={"patience": 1, "helpful_gain": 1e-6})
    assert annotate(predictor, [LARGE], hasty) == annotate(predictor, [LARGE], config)


def test_objects_that_are_prefilled_are_not_drawn_again() -> None:
    truths = [SMALL, LARGE, MEDIUM]
    nearly = rectangle(SIZE_HW, 10, 10, 64, 80)
    half = rectangle(SIZE_HW, 10, 90, 40, 110)
    masks = annotate(TruthfulPredictor(truths), truths, prefilled=(nearly, half)).masks
    assert [mask.area for mask in masks] == [MEDIUM.sum(), SMALL.sum()]


def test_tiny_objects_are_not_looked_for() -> None:
    tiny = rectangle(SIZE_HW, 0, 0, 7, 9)
    assert annotate(TruthfulPredictor([tiny]), [tiny]) == Submission(masks=(), seconds=0)


def test_only_the_most_prominent_objects_are_drawn_when_told_so() -> None:
    truths = [SMALL, LARGE, MEDIUM]
    config = CLICKS_ONLY.model_copy(update={"max_objects": 2})
    masks = annotate(TruthfulPredictor(truths), truths, config).masks
    assert [mask.area for mask in masks] == [LARGE.sum(), MEDIUM.sum()]


def test_a_mask_that_stays_bad_is_thrown_away_and_its_time_counts() -> None:
    predictor = TruthfulPredictor([SMALL], grown=20)
    submission = annotate(predictor, [SMALL])
    assert submission.masks == ()
    assert submission.seconds == 1 + 10 * 1.5


def test_an_image_without_objects_takes_no_time() -> None:
    assert annotate(TruthfulPredictor([LARGE]), []) == Submission(masks=(), seconds=0)


def test_a_real_model_is_corrected_to_the_target_and_its_logs_replay() -> None:
    sam = tiny_sam()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    predictor = Predictor(sam, SIZE_HW, embed(sam, pixels))
    config = SimulatedAnnotatorConfig(max_clicks=3, max_strokes=100)
    truths = [SMALL, LARGE, MEDIUM]
    submission = annotate(predictor, truths, config, max_mask_seconds=1000)
    assert submission == annotate(predictor, truths, config, max_mask_seconds=1000)
    for mask, truth in zip(submission.masks, (LARGE, MEDIUM, SMALL), strict=True):
        drawn = decode_rle(mask.segmentation)
        assert mask_iou(drawn, truth) >= config.target_iou
        assert np.array_equal(replay(lambda _: predictor, mask.interactions), drawn)
    assert submission.seconds == pytest.approx(sum(mask.seconds for mask in submission.masks))
