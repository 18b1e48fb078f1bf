import numpy as np
import pytest

from fakes import TruthfulPredictor, rectangle, tiny_sam
from stages.evaluation import ClickScores, Evaluation, box_recall, evaluate_image
from stages.predictor import Predictor, embed
from stages.prompts import mask_iou

SIZE_HW = (60, 80)
SQUARE = rectangle(SIZE_HW, 10, 10, 40, 40)
BAR = rectangle(SIZE_HW, 45, 5, 55, 75)


def test_the_first_click_is_scored_by_confidence_and_by_oracle() -> None:
    scores = evaluate_image(TruthfulPredictor([SQUARE]), [SQUARE])  # type: ignore[arg-type]
    eroded = [30 * 30, 28 * 28, 26 * 26]  # the fake's outputs, the last its most confident
    ious = [area / 900 for area in eroded]
    assert (scores.num_images, scores.num_masks) == (1, 1)
    assert scores.iou_1_click == pytest.approx(ious[2])
    assert scores.iou_1_click_oracle == 1
    errors = [abs(said - iou) for said, iou in zip((0.7, 0.8, 0.9), ious, strict=True)]
    assert scores.iou_head_error == pytest.approx(np.mean(errors))


def test_more_clicks_help_where_the_model_listens() -> None:
    predictor = TruthfulPredictor([SQUARE, BAR], grown=4, reach=12)
    means = evaluate_image(predictor, [SQUARE, BAR]).means()  # type: ignore[arg-type]
    assert (means.num_images, means.num_masks) == (1, 2)
    assert means.miou_1_click < means.miou_1_click_oracle + 1e-9
    assert means.miou_3_clicks < means.miou_5_clicks


def test_a_mask_that_is_right_stays_right_without_further_clicks() -> None:
    scores = evaluate_image(TruthfulPredictor([SQUARE]), [SQUARE])  # type: ignore[arg-type]
    assert scores.iou_3_clicks == scores.iou_5_clicks == 1
    assert scores.iou_head_error_5_clicks == pytest.approx(1 - 0.7), "the fake's single output"


def test_an_evaluation_of_an_older_version_is_read() -> None:
    means = evaluate_image(TruthfulPredictor([SQUARE]), [SQUARE]).means()  # type: ignore[arg-type]
    older = means.model_dump()
    del older["iou_head_error_5_clicks"]
    assert Evaluation.model_validate(older).iou_head_error_5_clicks is None
    assert Evaluation.model_validate_json(means.model_dump_json()) == means


def test_scores_of_images_add_up_in_any_order() -> None:
    sam = tiny_sam()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    predictor = Predictor(sam, SIZE_HW, embed(sam, pixels))
    first, second = (evaluate_image(predictor, [truth]) for truth in (SQUARE, BAR))
    together = evaluate_image(predictor, [SQUARE, BAR])
    summed = (first + second).model_dump() | {"num_images": 1}
    assert summed == pytest.approx(together.model_dump())
    assert first + second == second + first
    means = together.means()
    assert means.miou_1_click == pytest.approx((first.iou_1_click + second.iou_1_click) / 2)
    assert 0 <= means.miou_1_click <= means.miou_1_click_oracle <= 1


def test_empty_truths_are_left_out() -> None:
    nothing = np.zeros(SIZE_HW, dtype=bool)
    scores = evaluate_image(TruthfulPredictor([SQUARE]), [nothing])  # type: ignore[arg-type]
    assert (scores.num_images, scores.num_masks) == (1, 0)


def test_means_of_nothing_are_refused_with_what_to_check() -> None:
    with pytest.raises(ValueError, match="2 images with no mask between them; check the split"):
        ClickScores(num_images=2).means()


def test_recall_counts_true_boxes_that_some_proposal_meets() -> None:
    truths = np.float32([[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 52, 52]])
    proposals = np.float32([[0, 0, 10, 6], [0, 0, 10, 5.1], [21, 20, 41, 40], [0, 0, 60, 60]])
    assert box_recall(proposals, truths) == (2, 3)
    assert box_recall(proposals, truths, iou_threshold=0.9) == (1, 3)
    assert box_recall(proposals[:0], truths) == (0, 3)
    assert box_recall(proposals, truths[:0]) == (0, 0)


def test_recall_of_the_true_boxes_is_complete() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (20, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(1, 30, (20, 2))), axis=1)
    assert box_recall(boxes.astype(np.float32), boxes.astype(np.float32), 0.99) == (20, 20)


def test_a_predicted_iou_off_by_a_half_is_an_error_of_a_half() -> None:
    predictor = TruthfulPredictor([SQUARE])
    answer = predictor.predict((), (), box_xyxy=(10, 10, 39, 39), multimask_output=True)
    assert mask_iou(answer.masks[0], SQUARE) == 1
