from typing import Any

import numpy as np
import pytest

from fakes import TruthfulPredictor, rectangle, tiny_sam
from stages.assisted_manual import MaskSession, replay
from stages.base import Provenance
from stages.predictor import Answer, Predictor, embed
from stages.records import Source, StageName
from stages.rle import Mask, decode_rle, encode_rle
from stages.zoom_in import predictor_of

SIZE_HW = (80, 100)
PROVENANCE = Provenance(round=2, checkpoint="tiny@0123456789ab")
SQUARE = rectangle(SIZE_HW, 20, 20, 50, 50)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_with(snap=False)


def predictor_with(*, snap: bool) -> Predictor:
    sam = tiny_sam()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    return predictor_of(sam, pixels, embed(sam, pixels), zoom_in=False, snap=snap)


def middle_output(answer: Answer) -> int:
    return 1


@pytest.mark.parametrize("snap", [False, True])
def test_a_log_of_every_kind_of_action_replays_to_the_same_mask(snap: bool) -> None:
    predictor = predictor_with(snap=snap)
    session = MaskSession(predictor)
    session.click((30.0, 30.0), 1, seconds=1.5, choose=middle_output)
    session.click((70.0, 60.0), 0, seconds=1.5)
    session.drag_box((10.0, 10.0, 60.0, 55.0), seconds=3)
    session.click((44.0, 12.0), 1, seconds=1.5)
    session.brush(rectangle(SIZE_HW, 0, 0, 10, 30), 1, seconds=2)
    session.brush(rectangle(SIZE_HW, 5, 5, 60, 40), 0, seconds=2)
    assert np.array_equal(replay(lambda _: predictor, session.interactions), session.mask)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_the_chosen_output_is_kept_and_replayed(predictor: Predictor, output: int) -> None:
    session = MaskSession(predictor)
    answer = session.click((30.0, 30.0), 1, seconds=1.5, choose=lambda _: output)
    assert np.array_equal(session.mask, answer.masks[output])
    assert session.interactions[0].output == output
    assert session.interactions[0].predicted_iou == answer.predicted_iou[output]
    session.click((60.0, 60.0), 1, seconds=1.5)  # is shown the chosen output's logits
    assert np.array_equal(replay(lambda _: predictor, session.interactions), session.mask)


def test_the_model_is_shown_its_own_previous_answer(predictor: Predictor) -> None:
    session = MaskSession(predictor)
    first = session.click((30.0, 30.0), 1, seconds=0, choose=middle_output)
    session.click((60.0, 60.0), 0, seconds=0)
    asked = predictor.predict(
        ((30.0, 30.0), (60.0, 60.0)),
        (1, 0),
        mask_input=first.low_res_masks[1],
        multimask_output=False,
    )
    assert np.array_equal(session.mask, asked.masks[0])
    assert session.interactions[1].predicted_iou == asked.predicted_iou[0]


def test_whoever_answers_is_told_the_mask_that_a_further_click_corrects() -> None:
    told: list[Mask | None] = []

    class Listening(TruthfulPredictor):
        def predict(self, *args: Any, **kwargs: Any) -> Answer:
            told.append(kwargs["before"])
            return super().predict(*args, **kwargs)

    session = MaskSession(Listening([SQUARE], grown=2))  # type: ignore[arg-type]
    session.click((30.0, 30.0), 1, seconds=0)
    session.brush(rectangle(SIZE_HW, 0, 0, 4, 4), 1, seconds=0)
    in_sight = session.mask
    session.click((60.0, 60.0), 0, seconds=0)
    session.drag_box((10.0, 10.0, 60.0, 50.0), seconds=0)
    first, second, box = told
    assert first is None
    assert second is in_sight
    assert second[:4, :4].all()
    assert box is None


def test_the_first_click_takes_the_most_confident_output_unless_told_otherwise() -> None:
    session = MaskSession(TruthfulPredictor([SQUARE]))  # type: ignore[arg-type]
    answer = session.click((30.0, 30.0), 1, seconds=0)
    assert session.interactions[0].output == answer.best == 2


def test_every_action_is_logged_with_the_mask_it_led_to() -> None:
    session = MaskSession(TruthfulPredictor([SQUARE], grown=2, reach=5))  # type: ignore[arg-type]
    session.drag_box((20.0, 20.0, 49.0, 49.0), seconds=3.0)
    masks = [session.mask]
    session.click((35.0, 51.0), 0, seconds=1.5)
    masks.append(session.mask)
    session.brush(rectangle(SIZE_HW, 0, 0, 4, 6), 1, seconds=2.0)
    masks.append(session.mask)
    log = session.interactions
    assert [action.kind for action in log] == ["box", "point", "brush"]
    assert [action.coords for action in log] == [(20, 20, 49, 49), (35, 51), (0, 0, 5, 3)]
    assert [action.label for action in log] == [1, 0, 1]
    assert [action.output for action in log] == [0, 0, None]
    assert [action.predicted_iou for action in log] == [0.7, 0.7, None]
    assert [action.seconds for action in log] == [3, 1.5, 2]
    assert all(
        np.array_equal(decode_rle(action.answer), mask)
        for action, mask in zip(log, masks, strict=True)
    )
    assert session.seconds == 6.5


def test_the_brush_paints_and_the_eraser_wipes() -> None:
    session = MaskSession(TruthfulPredictor([SQUARE]))  # type: ignore[arg-type]
    session.drag_box((20.0, 20.0, 49.0, 49.0), seconds=0)
    session.brush(rectangle(SIZE_HW, 50, 20, 60, 50), 1, seconds=0)
    assert np.array_equal(session.mask, rectangle(SIZE_HW, 20, 20, 60, 50))
    session.brush(rectangle(SIZE_HW, 0, 0, 30, 100), 0, seconds=0)
    assert np.array_equal(session.mask, rectangle(SIZE_HW, 30, 20, 60, 50))


def test_a_stroke_that_changes_nothing_replays_too() -> None:
    predictor = TruthfulPredictor([SQUARE])
    session = MaskSession(predictor)  # type: ignore[arg-type]
    session.drag_box((20.0, 20.0, 49.0, 49.0), seconds=0)
    session.brush(rectangle(SIZE_HW, 25, 25, 30, 30), 1, seconds=0)
    session.brush(rectangle(SIZE_HW, 60, 60, 70, 70), 0, seconds=0)
    again = replay(lambda _: predictor, session.interactions)  # type: ignore[arg-type,return-value]
    assert np.array_equal(again, SQUARE)


def test_a_stroke_without_pixels_is_refused() -> None:
    session = MaskSession(TruthfulPredictor([SQUARE]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stroke"):
        session.brush(np.zeros(SIZE_HW, dtype=bool), 1, seconds=0)


def test_the_record_holds_the_final_mask_and_how_it_was_made() -> None:
    session = MaskSession(TruthfulPredictor([SQUARE]))  # type: ignore[arg-type]
    session.click((35.0, 35.0), 1, seconds=1.5, choose=lambda _: 0)
    session.click((36.0, 36.0), 1, seconds=1.5)
    session.brush(rectangle(SIZE_HW, 50, 20, 60, 50), 1, seconds=2.25)
    record = session.record(5, StageName.SEMI_AUTOMATIC, "ann", PROVENANCE)
    assert record.segmentation == encode_rle(rectangle(SIZE_HW, 20, 20, 60, 50))
    assert (record.area, record.bbox) == (1200, (20, 20, 30, 40))
    assert (record.id, record.stage, record.round) == (5, StageName.SEMI_AUTOMATIC, 2)
    assert (record.source, record.annotator) == (Source.ANNOTATED, "ann")
    assert (record.num_clicks, record.seconds) == (2, 5.25)
    assert record.point_coords == ((35, 35), (36, 36))
    assert record.crop_box == (0, 0, 100, 80)
    assert record.checkpoint == PROVENANCE.checkpoint
    assert record.interactions == tuple(session.interactions)
    assert (record.predicted_iou, record.stability_score) == (0.7, 0.97)


def test_a_mask_that_nobody_asked_for_has_no_record() -> None:
    session = MaskSession(TruthfulPredictor([SQUARE]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a single click or box"):
        session.record(0, StageName.ASSISTED_MANUAL, "ann", PROVENANCE)
