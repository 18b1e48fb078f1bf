"""Nothing of one image reaches the next: no gesture, no question, no embedding, no memory."""

import pytest
from playwright.sync_api import Route

from person import Arrive, Person
from waiting_rounds import WaitingRound

COUNT_IMAGES = """
window.openImages = 0;
const [make, close] = [window.createImageBitmap, ImageBitmap.prototype.close];
window.createImageBitmap = async (...given) => {
    window.openImages++;
    return make(...given);
};
ImageBitmap.prototype.close = function () {
    window.openImages--;
    close.call(this);
};
"""


def test_a_button_let_go_over_the_next_image_clicks_nothing(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    ada.move(ada.things["ball"].middle)
    ada.page.mouse.down()
    ada.submit()
    ada.page.mouse.up()
    ada.wait_until_answered()
    assert "Click an object" in ada.status
    ada.press("Enter")
    assert "no mask to accept" in ada.status


def test_a_question_goes_with_the_image_it_asks_about(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    task_id = ada.task_id
    ada.click(ada.things["ball"].middle)
    ada.press("Enter")
    ada.wait_until_saved()
    ada.press("Control+Space")
    question = ada.page.get_by_role("dialog", name="Skip this image")
    question.wait_for()
    stage_one.expire_leases()
    bob = arrive(stage_one, "Bob")
    assert bob.task_id == task_id
    ada.page.evaluate("() => dispatchEvent(new Event('online'))")  # leases are looked after at once
    ada.wait_for_another(task_id)
    question.wait_for(state="detached")


def test_an_embedding_that_comes_late_is_not_the_next_images(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one, decoder="page")
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    ada.page.context.route("**/api/embeddings/*", hold_the_first)
    ada.page.reload()
    ada.page.wait_for_selector("canvas.above[data-phase=working]")
    ada.until(lambda: held)
    task_id, first = ada.task_id, ada.file_name
    ada.until(lambda: sum("/api/embeddings/" in url for url in ada.fetched) >= 1)
    ada.submit()
    ada.wait_for_another(task_id)
    ada.click(ada.things["ball"].middle)
    ada.press("Escape")
    held[0].continue_()
    ada.page.wait_for_timeout(500)
    ada.click(ada.things["box"].middle)
    assert "predicted IoU" in ada.status
    assert ada.file_name != first


@pytest.fixture
def counting(stage_one: WaitingRound, arrive: Arrive) -> Person:
    ada = arrive(stage_one)
    ada.page.add_init_script(COUNT_IMAGES)
    ada.page.reload()
    ada.wait_for_image()
    return ada


def test_images_that_are_done_are_given_up(counting: Person) -> None:
    for _ in range(3):
        counting.submit()
    # The one in work; there is none left to fetch ahead.
    counting.until(lambda: counting.page.evaluate("window.openImages") == 1)
