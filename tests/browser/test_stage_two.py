"""Stage two: confident masks are locked, and people draw what they miss."""

from person import Arrive
from stages.prompts import mask_iou
from stages.rle import decode_rle
from waiting_rounds import WaitingRound


def test_only_what_is_missing_is_drawn(stage_two: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_two)
    name, things = ada.file_name, ada.things
    ball, kite = things["ball"], things["kite"]
    locked = ada.page.locator("[data-locked]")
    assert locked.count() >= 2
    covered = ada.colour("below", ball.middle)
    bare = ada.colour("below", kite.middle)
    ada.press("u")
    ada.until(lambda: sum(ada.colour("below", ball.middle)[:3]) < sum(covered[:3]) / 3)
    assert ada.colour("below", kite.middle) == bare
    ada.press("u")
    ada.press("v")
    ada.click(ball.middle)
    assert "No accepted mask" in ada.status  # a locked one is not taken up
    ada.press("p")
    ada.move(ball.middle)
    ada.press("x")
    ada.wait_until_saved()
    flagged = ada.page.locator(".flagged")
    assert flagged.count() == 1
    ada.pick(kite)
    ada.accept()
    ada.submit()
    submission = stage_two.submission(name)
    assert submission is not None
    (mask,) = submission.masks
    assert mask_iou(decode_rle(mask.segmentation), kite.mask) > 0.7
    (wrong,) = submission.flagged
    prefilled = {one.id: decode_rle(one.segmentation) for one in stage_two.prefilled(name)}
    x, y = ball.middle
    assert prefilled[wrong][y, x]


def test_a_mask_of_the_list_is_shown_where_it_is(stage_two: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_two)
    first, second, *_ = (
        (mask, decode_rle(mask.segmentation)) for mask in stage_two.prefilled(ada.file_name)
    )
    middles = []
    for (_, mask), (_, other) in ((first, second), (second, first)):
        ys, xs = (mask & ~other).nonzero()
        middles.append((int(xs[len(xs) // 2]), int(ys[len(ys) // 2])))
    drawn = [ada.colour("below", middle) for middle in middles]

    def is_shown(at: int) -> bool:
        return ada.colour("below", middles[at]) == drawn[at]

    row = ada.page.locator(f"[data-locked='{first[0].id}']")
    row.hover()
    ada.until(lambda: is_shown(0) and not is_shown(1))
    ada.page.mouse.move(600, 5)
    ada.until(lambda: is_shown(0) and is_shown(1))
    row.get_by_role("button").focus()  # by the keyboard as well
    ada.until(lambda: is_shown(0) and not is_shown(1))
