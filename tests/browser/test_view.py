"""What the annotator sees: previews, zoom, outlines, and the list of keys."""

import pytest

from person import Arrive
from waiting_rounds import WaitingRound

NOTHING = [0, 0, 0, 0]


def test_a_hover_shows_what_a_click_would_give(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    x, y = ada.things["ball"].middle
    beside = (x + 30, y)
    assert ada.colour("above", beside) == NOTHING
    ada.move((x, y))
    ada.until(lambda: ada.colour("above", beside) != NOTHING)
    assert ada.accepted == 0
    ada.page.mouse.move(600, 5)  # off the image
    ada.until(lambda: ada.colour("above", beside) == NOTHING)


def test_zoom_stays_at_the_mouse_and_clicks_find_their_pixel(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    fitted, pebble = ada.view, ada.things["pebble"]
    at = ada.on_canvas(pebble.middle)
    ada.move(pebble.middle)
    ada.page.mouse.wheel(0, -700)
    ada.until(lambda: ada.view[0] > 2 * fitted[0])
    zoomed = ada.view
    assert ada.on_canvas(pebble.middle) == pytest.approx(at, abs=1)
    ada.page.keyboard.down(" ")
    ada.page.mouse.down()
    ada.page.mouse.move(700, 500, steps=4)
    ada.page.mouse.up()
    ada.page.keyboard.up(" ")
    assert ada.view[0] == zoomed[0]
    assert ada.view[1:] != zoomed[1:]
    ada.click(pebble.middle)
    ada.accept()
    (saved,) = ada.saved()
    assert saved.mask.interactions[0].coords == pebble.middle
    ada.press("0")
    assert ada.view == fitted


def test_masks_are_hidden_and_outlined_by_key(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    ball = ada.things["ball"].middle
    bare = ada.colour("below", ball)
    ada.click(ball)
    ada.accept()
    ada.until(lambda: ada.colour("below", ball) != bare)
    ada.page.keyboard.down("h")
    ada.until(lambda: ada.colour("below", ball) == bare)
    ada.page.keyboard.up("h")
    ada.until(lambda: ada.colour("below", ball) != bare)
    ada.press("o")
    ada.until(lambda: ada.colour("below", ball) == bare)


def test_the_sheet_of_keys_opens_and_holds_the_keyboard(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    ada.press("?")
    sheet = ada.page.get_by_role("dialog", name="Keys")
    sheet.wait_for()
    ada.press("b")
    assert ada.tool == "click"
    ada.press("?")
    sheet.wait_for(state="hidden")
    ada.press("?")
    sheet.wait_for()
    ada.press("Escape")
    sheet.wait_for(state="hidden")
    ada.press("b")
    assert ada.tool == "brush"


def test_the_wheel_moves_no_corner_of_a_box_and_escape_gives_up_the_drag_alone(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    x0, y0, x1, y1 = ada.things["box"].box
    ada.move((x0, y0))
    ada.page.mouse.down()
    ada.move(((x0 + x1) // 2, (y0 + y1) // 2))
    ada.page.mouse.wheel(0, -300)
    ada.move((x1, y1))
    ada.page.mouse.up()
    ada.wait_until_answered()
    ada.page.mouse.down()
    ada.move((x0 + 30, y0 + 30))
    ada.press("Escape")
    ada.page.mouse.up()
    ada.accept()
    (saved,) = ada.saved()
    (drag,) = saved.mask.interactions
    assert drag.coords == pytest.approx((x0, y0, x1, y1), abs=1.5)


def test_on_a_screen_of_other_pixels_clicks_find_what_is_seen(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    ball = ada.things["ball"].middle
    bare = ada.colour("below", ball)
    ada.move(ada.things["pebble"].middle)
    ada.page.mouse.wheel(0, -100)
    zoomed = ada.view
    session = ada.page.context.new_cdp_session(ada.page)
    screen = {"width": 1200, "height": 760, "deviceScaleFactor": 2, "mobile": False}
    session.send("Emulation.setDeviceMetricsOverride", screen)
    ada.move(ball)
    width = "() => document.querySelector('canvas.above').width"
    ada.until(lambda: ada.page.evaluate(width) == 2 * (1200 - 142 - 216))
    assert ada.view == zoomed
    ada.until(lambda: ada.colour("below", ball) == pytest.approx(bare, abs=8))
