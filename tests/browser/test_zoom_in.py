"""Small objects, which the model is shown enlarged."""

import numpy as np
import torch

from model.checkpoint import load_checkpoint
from person import Arrive
from stages.assisted_manual import replay
from stages.predictor import embed
from stages.prompts import mask_iou
from stages.rle import decode_rle
from stages.zoom_in import predictors_of_log
from still_lifes import SIZE_HW, draw_still_life, things_of
from waiting_rounds import WaitingRound


def test_small_things_are_drawn_from_nearer_as_the_simulated_annotator_has_them(
    zooming: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(zooming)
    name, number = ada.file_name, int(ada.file_name.removesuffix(".png"))
    box, pebble = (things_of(number)[thing] for thing in ("box", "pebble"))

    def looks() -> int:
        return sum("/api/zoom-in" in address for address in ada.sent)

    ada.pick(box)
    assert looks() == 0  # too large for a crop
    ada.accept()
    ada.pick(pebble)
    assert looks() == 1
    x0, _, _, y1 = pebble.box
    ada.click((x0 - 12, y1 - 4), button="right")
    assert looks() == 2
    ada.accept()
    ada.submit()
    submission = zooming.submission(name)
    assert submission is not None
    drawn = [decode_rle(mask.segmentation) for mask in submission.masks]
    assert mask_iou(drawn[1], pebble.mask) > 0.8
    pixels = draw_still_life(number).astype(np.uint8)
    assert pixels.shape == (*SIZE_HW, 3)
    sam = load_checkpoint("sa-tiny").sam.eval()
    embedding = embed(sam, pixels).to(torch.float16).float()
    asked = predictors_of_log(sam, pixels, embedding)
    for mask, stored in zip(submission.masks, drawn, strict=True):
        assert mask_iou(replay(asked, mask.interactions), stored) > 0.99
    looks_of = [[action.zoomed_in for action in mask.interactions] for mask in submission.masks]
    assert looks_of[0] == [False]
    assert any(looks_of[1])  # on a busy machine, one may come too late


def test_without_a_second_look_the_first_one_stands(zooming: WaitingRound, arrive: Arrive) -> None:
    zooming.begin_anew()
    ada = arrive(zooming, "Bob")
    ada.page.route("**/api/zoom-in", lambda route: route.abort())
    name, pebble = ada.file_name, ada.things["pebble"]
    ada.pick(pebble)
    ada.accept()
    ada.submit()
    submission = zooming.submission(name)
    assert submission is not None
    (mask,) = submission.masks
    assert mask_iou(decode_rle(mask.segmentation), pebble.mask) > 0.6
    assert [action.zoomed_in for action in mask.interactions] == [False]
