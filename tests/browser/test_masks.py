"""Masks made by clicks, boxes and strokes, and what is stored of them."""

import numpy as np

from person import Arrive
from stages.prompts import mask_iou
from stages.records import ImageStatus, MaskRecord
from stages.rle import decode_rle
from still_lifes import Thing
from waiting_rounds import WaitingRound

CORNER = (3, 3)
"""A pixel of the background."""


def iou(stored: MaskRecord, thing: Thing) -> float:
    return mask_iou(decode_rle(stored.segmentation), thing.mask)


def test_an_image_is_annotated_and_handed_in(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    name, things = ada.file_name, ada.things
    ada.pick(things["ball"])
    assert "predicted IoU" in ada.status
    ada.accept()
    assert ada.tool == "click"  # still armed
    x0, y0, x1, y1 = things["pebble"].box
    ada.drag([(x0, y0), (x1, y1)])
    ada.accept()
    ada.click(things["box"].middle)
    ada.click(CORNER, button="right")
    ada.click((CORNER[0] + 9, CORNER[1]), key="Shift")
    ada.accept()
    ada.submit()
    assert ada.file_name != name
    submission = stage_one.submission(name)
    assert submission is not None
    assert submission.status is ImageStatus.OK
    ball, pebble, box = submission.masks
    assert iou(ball, things["ball"]) > 0.8
    assert iou(pebble, things["pebble"]) > 0.8
    assert {mask.annotator for mask in submission.masks} == {"Ada"}
    (click,) = ball.interactions
    assert (click.kind, click.coords, click.label) == ("point", things["ball"].middle, 1)
    (drag,) = pebble.interactions
    assert drag.kind == "box"
    assert np.allclose(drag.coords, things["pebble"].box, atol=1.5)
    assert [action.label for action in box.interactions] == [1, 0, 0]
    assert 0 < sum(mask.seconds for mask in submission.masks) <= submission.seconds < 60


def test_strokes_have_the_last_word_and_undo_covers_all(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    name, box = ada.file_name, ada.things["box"]
    x0, y0, x1, y1 = box.box
    ada.pick(box)
    ada.press("b", *["]"] * 3)
    middle_y = (y0 + y1) // 2
    ada.drag([(x0 + 20, y0 + 20), (x1 - 20, y0 + 20), (x1 - 20, y1 - 20), (x0 + 20, y1 - 20)])
    ada.press("e")
    ada.drag([(x0, middle_y), (x1, middle_y)])  # a mistake
    ada.press("Backspace")
    ada.drag([(x0 - 40, y0 - 24), (x1 + 20, y0 - 24)])
    ada.press("Control+z", "Control+z", "Control+z")
    assert "Click an object" in ada.status
    ada.press(*["Control+Shift+Z"] * 3)
    ada.accept()
    assert ada.tool == "eraser"
    ada.submit()
    submission = stage_one.submission(name)
    assert submission is not None
    (mask,) = submission.masks
    assert [(a.kind, a.label) for a in mask.interactions] == [
        ("point", 1),
        ("brush", 1),
        ("brush", 0),
    ]
    assert iou(mask, box) > 0.85
    drawn = decode_rle(mask.segmentation)
    painted, erased = (decode_rle(a.stroke) for a in mask.interactions[1:] if a.stroke)
    assert drawn[painted & ~erased].all()
    assert not drawn[erased].any()
    assert drawn[middle_y, x0 + 20 : x1 - 20].mean() > 0.8  # the mistake was taken back


def test_whole_part_and_subpart_are_chosen_by_key(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    name, ball = ada.file_name, ada.things["ball"]
    for key in "123":
        ada.click(ball.middle)
        ada.press(key)
        ada.accept()
    ada.click(ball.middle)
    ada.click(CORNER, button="right")
    ada.press("1")
    assert "after a first click alone" in ada.status
    ada.press("Escape")
    ada.submit()
    submission = stage_one.submission(name)
    assert submission is not None
    assert [mask.interactions[0].output for mask in submission.masks] == [0, 1, 2]
    assert len({mask.segmentation.counts for mask in submission.masks}) == 3


def test_an_accepted_mask_is_taken_up_again_and_deleted(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    name, things = ada.file_name, ada.things
    for thing in ("ball", "box", "kite"):
        ada.pick(things[thing])
        ada.accept()
    first = {saved.mask_id for saved in ada.saved()}
    ada.press("v")
    ada.click(things["box"].middle)
    assert ada.tool == "click"  # a next click would correct it
    ada.press("b")
    x0, y0, x1, _ = things["box"].box
    ada.drag([(x0 + 15, y0 + 15), (x1 - 15, y0 + 15)])
    ada.press("Enter")
    ada.wait_until_saved()
    ada.page.get_by_label("Delete mask 3", exact=True).click()
    ada.press("Control+z")  # it comes back
    ada.page.get_by_label("Edit mask 1", exact=True).click()
    ada.wait_until_answered()
    ada.press("Delete")
    ada.wait_until_saved()
    assert {saved.mask_id for saved in ada.saved()} < first
    ada.submit()
    submission = stage_one.submission(name)
    assert submission is not None
    box, kite = submission.masks
    assert [action.kind for action in box.interactions] == ["point", "brush"]
    assert iou(box, things["box"]) > 0.8
    assert iou(kite, things["kite"]) > 0.7


def test_an_image_is_skipped_with_a_reason(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    name, task_id = ada.file_name, ada.task_id
    ada.click(ada.things["ball"].middle)
    ada.accept()
    ada.press("Control+Space")
    ada.page.get_by_text("Its mask is left out").wait_for()
    ada.page.get_by_label("Another reason", exact=True).fill("b1 e? upside down")
    assert ada.tool == "click"  # typing is no command
    ada.page.get_by_role("button", name="Skip", exact=True).click()
    ada.wait_for_another(task_id)
    ada.wait_until_saved()
    submission = stage_one.submission(name)
    assert submission is not None
    assert (submission.status, submission.error) == (ImageStatus.SKIPPED, "b1 e? upside down")


def test_two_people_never_hold_one_image(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada, bob = arrive(stage_one, "Ada"), arrive(stage_one, "Bob")
    drawn_by: dict[str, str] = {}
    for name, person in (("Ada", ada), ("Bob", bob)) * 2:
        person.wait_for_image()
        assert person.file_name not in drawn_by
        assert ada.task_id != bob.task_id
        drawn_by[person.file_name] = name
        person.click(person.things["ball"].middle)
        person.accept()
        if len(drawn_by) <= 2:  # were all handed in, the round would end
            person.submit()
    for name, annotator in list(drawn_by.items())[:2]:
        submission = stage_one.submission(name)
        assert submission is not None
        assert [mask.annotator for mask in submission.masks] == [annotator]
    for name, person in (("Ada", ada), ("Bob", bob)):
        assert [saved.annotator for saved in person.saved()] == [name]


def test_both_decoders_give_equal_masks(stage_one: WaitingRound, arrive: Arrive) -> None:
    logs = []
    for decoder in ("page", "server"):
        stage_one.begin_anew()
        ada = arrive(stage_one, decoder=decoder)
        things = ada.things
        for thing in things.values():
            ada.click(thing.middle)
            ada.click(CORNER, button="right")
            ada.accept()
        x0, y0, x1, y1 = things["box"].box
        ada.drag([(x0, y0), (x1, y1)])
        ada.accept()
        logs.append([action.answer for saved in ada.saved() for action in saved.mask.interactions])
    page, server = logs
    assert len(page) == 9
    assert page == server
