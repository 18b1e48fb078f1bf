"""Masks that the page makes of superpixels."""

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from person import Arrive
from stages.assisted_manual import replay
from stages.predictor import embed
from stages.prompts import mask_iou
from stages.rle import decode_rle
from stages.zoom_in import predictors_of_log
from still_lifes import draw_still_life, things_of
from waiting_rounds import WaitingRound


@pytest.mark.parametrize("decoder", ["server", "page"])
def test_masks_end_where_things_end_and_are_made_again_by_their_log(
    snapping: WaitingRound, arrive: Arrive, decoder: str
) -> None:
    snapping.begin_anew()
    ada = arrive(snapping, decoder=decoder)
    name, number = ada.file_name, int(ada.file_name.removesuffix(".png"))
    box, pebble = (things_of(number)[thing] for thing in ("box", "pebble"))

    def cut_up() -> list[bool]:
        """Superpixels that were fetched: whether of a crop."""
        return ["crop_xyxy" in address for address in ada.fetched if "/superpixels/" in address]

    assert False in cut_up()
    ada.pick(box)
    ada.accept()
    assert True not in cut_up()  # too large for a crop
    ada.pick(pebble)
    x0, _, _, y1 = pebble.box
    ada.click((x0 - 12, y1 - 4), button="right")
    ada.accept()
    assert True in cut_up()
    ada.submit()
    submission = snapping.submission(name)
    assert submission is not None
    drawn = [decode_rle(mask.segmentation) for mask in submission.masks]
    assert len(drawn) == 2
    for mask, thing in zip(drawn, (box, pebble), strict=True):
        assert mask_iou(mask, thing.mask) > 0.9
    pixels = draw_still_life(number).astype(np.uint8)
    sam = load_checkpoint("sa-tiny").sam.eval()
    embedding = embed(sam, pixels).to(torch.float16).float()
    asked = predictors_of_log(sam, pixels, embedding)
    for mask, stored in zip(submission.masks, drawn, strict=True):
        # Answers travel in half precision, which may turn over an atom at the threshold.
        assert mask_iou(replay(asked, mask.interactions), stored) > 0.98
        first = mask.interactions[0]
        assert first.output is not None
        x, y = first.coords
        answer = asked(first).predict(((x, y),), (1,), multimask_output=True)
        assert first.predicted_iou == pytest.approx(answer.predicted_iou[first.output], abs=0.01)
    assert submission.masks[0].stability_score > 0.8  # all segmentations agree on it


def test_the_model_s_own_edges_are_a_key_away(snapping: WaitingRound, arrive: Arrive) -> None:
    snapping.begin_anew()
    ada = arrive(snapping)
    name, box = ada.file_name, ada.things["box"]
    ada.pick(box)
    snapped = ada.status
    ada.press("s")
    assert "model's own" in ada.status
    assert ada.status != snapped
    ada.accept()
    ada.pick(ada.things["ball"])
    ada.accept()
    ada.press("s")
    ada.pick(ada.things["pebble"])
    ada.accept()
    ada.submit()
    submission = snapping.submission(name)
    assert submission is not None
    said = [[action.snapped for action in mask.interactions] for mask in submission.masks]
    assert said == [[False], [False], [True]]
    number = int(name.removesuffix(".png"))
    pixels = draw_still_life(number).astype(np.uint8)
    sam = load_checkpoint("sa-tiny").sam.eval()
    asked = predictors_of_log(sam, pixels, embed(sam, pixels).to(torch.float16).float())
    for mask in submission.masks:
        again = replay(asked, mask.interactions)
        assert mask_iou(again, decode_rle(mask.segmentation)) > 0.98


def test_without_superpixels_the_model_s_own_masks_are_drawn_and_the_annotator_is_told(
    snapping: WaitingRound, arrive: Arrive
) -> None:
    snapping.begin_anew()
    ada = arrive(snapping, "Bob")
    ada.page.route("**/api/superpixels/**", lambda route: route.fulfill(status=410, body="{}"))
    ada.page.reload()
    ada.wait_for_image()
    assert "will not follow the edges" in ada.status
    ada.pick(ada.things["box"])
    ada.accept()
    assert ada.accepted == 1
