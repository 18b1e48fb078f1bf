"""No accepted mask is lost: not with the network, the tab, the server, or the lease."""

from person import Arrive
from waiting_rounds import WaitingRound


def test_what_is_accepted_without_a_network_is_saved_when_it_is_back(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one, decoder="page")
    things = ada.things
    ada.click(things["ball"].middle)
    ada.page.context.set_offline(True)
    for thing in ("box", "kite"):
        ada.press("Enter")
        ada.click(things[thing].middle)
    ada.press("Enter")
    ada.page.wait_for_selector('[data-unsaved="3"]')
    assert ada.saved() == ()
    ada.page.context.set_offline(False)
    ada.wait_until_saved()
    assert len(ada.saved()) == 3


def test_without_a_network_the_image_fetched_ahead_is_worked_on(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one, decoder="page")
    name, task_id = ada.file_name, ada.task_id
    ada.click(ada.things["ball"].middle)
    ada.accept()
    ada.until(lambda: sum("/api/embeddings/" in url for url in ada.fetched) == 2)
    ada.page.context.set_offline(True)
    ada.press("Control+Enter")
    ada.wait_for_another(task_id)
    ada.click(ada.things["box"].middle)
    ada.press("Enter")
    ada.page.wait_for_selector('[data-unsaved="2"]')
    assert stage_one.submission(name) is None
    ada.page.context.set_offline(False)
    ada.wait_until_saved()
    submission = stage_one.submission(name)
    assert submission is not None
    assert len(submission.masks) == len(ada.saved()) == 1


def test_a_sign_out_by_the_server_loses_nothing(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    ada.click(ada.things["ball"].middle)
    token = stage_one.token("Ada")  # a new one: the session ends
    ada.press("Enter")
    ada.page.get_by_label("Your token").wait_for()
    assert ada.saved() == ()
    ada.sign_in(token)
    ada.wait_until_saved()
    assert len(ada.saved()) == 1
    ada.submit()


def test_a_tab_closed_without_a_network_saves_when_it_is_back(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    task_id, context = ada.task_id, ada.page.context
    ada.click(ada.things["ball"].middle)
    context.set_offline(True)
    ada.press("Enter")
    ada.page.wait_for_selector('[data-unsaved="1"]')
    ada.page.close()
    context.set_offline(False)
    ada.page = context.new_page()
    ada.open("server")
    ada.wait_for_image()
    assert ada.task_id == task_id  # although its lease is as good as it was
    ada.wait_until_saved()
    assert ada.accepted == 1
    assert len(ada.saved()) == 1


def test_a_closed_tab_takes_nothing_with_it(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    task_id, context = ada.task_id, ada.page.context
    ada.click(ada.things["ball"].middle)
    ada.accept()
    (saved,) = ada.saved()
    ada.page.close()
    ada.page = context.new_page()
    ada.open("server")
    ada.wait_for_image()
    assert ada.task_id == task_id
    assert ada.accepted == 1
    assert ada.saved() == (saved,)


def test_a_killed_server_is_waited_for(stage_one: WaitingRound, arrive: Arrive) -> None:
    ada = arrive(stage_one)
    name, things = ada.file_name, ada.things
    ada.click(things["ball"].middle)
    stage_one.server.kill()
    ada.press("Enter")
    ada.page.wait_for_selector('[data-unsaved="1"]')
    ada.press("Control+Enter")  # goes through when the server is back
    stage_one.server.start()
    ada.until(lambda: stage_one.submission(name))
    submission = stage_one.submission(name)
    assert submission is not None
    assert len(submission.masks) == 1


def test_an_image_goes_back_with_its_masks_when_its_annotator_is_away_for_long(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    task_id = ada.task_id
    ada.click(ada.things["ball"].middle)
    ada.accept()
    later = """milliseconds => {
        const now = performance.now.bind(performance);
        performance.now = () => now() + milliseconds;
    }"""

    def said() -> str:
        ada.page.evaluate("dispatchEvent(new Event('online'))")  # the page looks how things are
        return ada.status

    ada.page.evaluate(later, 19 * 60_000)
    said()
    ada.page.wait_for_timeout(500)
    assert ada.task_id == task_id
    ada.page.evaluate(later, 2 * 60_000)
    ada.until(lambda: "You were away" in said())
    ada.until(lambda: stage_one.counts().leased == 0)
    bob = arrive(stage_one, "Bob")
    assert (bob.task_id, bob.accepted) == (task_id, 1)
    ada.page.keyboard.press("Shift")  # somebody is there again
    ada.wait_for_another(task_id)


def test_an_expired_lease_passes_the_image_on_with_its_masks(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    name, task_id, things = ada.file_name, ada.task_id, ada.things
    ada.click(things["ball"].middle)
    ada.accept()
    stage_one.expire_leases()
    bob = arrive(stage_one, "Bob")
    assert bob.task_id == task_id
    assert bob.accepted == 1
    ada.click(things["box"].middle)
    ada.press("Enter")  # too late: somebody else has the image
    ada.wait_for_another(task_id)
    ada.wait_until_saved()  # what can no longer be sent keeps nobody from leaving
    bob.click(things["kite"].middle)
    bob.accept()
    bob.submit()
    submission = stage_one.submission(name)
    assert submission is not None
    assert [mask.annotator for mask in submission.masks] == ["Ada", "Bob"]


def test_who_leaves_is_asked_about_a_mask_in_the_making(
    stage_one: WaitingRound, arrive: Arrive
) -> None:
    ada = arrive(stage_one)
    ada.click(ada.things["ball"].middle)
    ada.page.get_by_role("button", name="Sign out").click()
    ada.until(lambda: "not accepted yet" in ada.status)
    ada.accept()
    ada.page.get_by_role("button", name="Sign out").click()
    ada.page.get_by_label("Your token").wait_for()
