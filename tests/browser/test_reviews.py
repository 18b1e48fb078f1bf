"""A second person at the page: reviews, audits, and the manager's dashboard."""

import uuid
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, expect
from rich.console import Console

from engine.audit import audit_report, prepare_audit
from engine.progress import Progress
from engine.run import open_queue
from engine.task_tables import TaskKind
from offices import PEOPLE
from person import Arrive, Person
from stages.prompts import mask_iou
from stages.records import DraftMask, Interaction
from stages.rle import Mask, decode_rle, encode_rle
from still_lifes import things_of, write_still_lifes
from tiny_runs import AUTOMATIC, MANUAL, TinyRun
from waiting_rounds import Server, WaitingRound, waiting_round
from web.accounts import Role
from web.serve import accounts_of

REVIEWED: list[dict[str, Any]] = [MANUAL | PEOPLE | {"retrain": False, "review_share": 1.0}]


@pytest.fixture(scope="module")
def served(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WaitingRound]:
    with waiting_round(tmp_path_factory.mktemp("reviewed"), REVIEWED, 2) as served:
        yield served


@pytest.fixture
def reviewed(served: WaitingRound) -> WaitingRound:
    """Two images, of which nothing is done; both will be reviewed."""
    served.begin_anew()
    return served


def hand_in(waiting: WaitingRound, name: str, *masks: Mask) -> str:
    """Somebody annotates the next image, one click a mask; returns its file name."""
    desk = waiting.office.desk
    task = desk.claim(name, TaskKind.ANNOTATE)
    assert task is not None
    lease = desk.lease(task.task_id, task.lease)
    for mask in masks:
        rle = encode_rle(mask)
        y, x = (int(places[len(places) // 2]) for places in mask.nonzero())
        click = Interaction(
            kind="point",
            coords=(x, y),
            label=1,
            output=0,
            seconds=2.0,
            predicted_iou=0.9,
            answer=rle,
        )
        drawn = DraftMask(
            segmentation=rle,
            predicted_iou=0.9,
            stability_score=0.9,
            seconds=3.0,
            interactions=(click,),
        )
        desk.save(lease, uuid.uuid4().hex, drawn)
    desk.submit(lease, 10.0)
    return task.file_name


class OpenAt(Protocol):
    def __call__(self, url: str, token: str, waiting: WaitingRound | None = None) -> Person:
        """Somebody opens an address in a browser of their own, and signs in."""


@pytest.fixture
def open_at(browser: Browser) -> Iterator[OpenAt]:
    contexts = []

    def open_at(url: str, token: str, waiting: WaitingRound | None = None) -> Person:
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 760}))
        person = Person(contexts[-1].new_page(), waiting)  # type: ignore[arg-type]  # an audit has none
        person.page.goto(url)
        person.sign_in(token)
        return person

    yield open_at
    for context in contexts:
        context.close()


@pytest.fixture
def rae_at(open_at: OpenAt, reviewed: WaitingRound) -> Callable[[str], Person]:
    """She opens the page in some mode; she may do everything."""

    def open_mode(mode: str) -> Person:
        url = f"{reviewed.server.url}/?decoder=server#{mode}"
        return open_at(url, reviewed.token("Rae", Role.MANAGER), reviewed)

    return open_mode


def verdict(person: Person, label: str, note: str = "") -> None:
    person.press("Control+Enter")
    dialog = person.page.get_by_role("dialog", name="Verdict")
    dialog.get_by_label(label).check()
    if note:
        dialog.get_by_role("textbox").fill(note)
    dialog.get_by_role("button", name="Hand in").click()


def test_a_reviewer_corrects_deletes_and_adds(
    reviewed: WaitingRound, rae_at: Callable[[str], Person]
) -> None:
    things = things_of(0)
    ball, box, kite = (things[name].mask for name in ("ball", "box", "kite"))
    too_much = ball.copy()
    too_much[:14, :] = True
    name = hand_in(reviewed, "Ada", too_much, box)
    rae = rae_at("review")
    rae.wait_for_image()
    assert rae.file_name == name
    assert rae.accepted == 2
    rae.page.get_by_role("button", name="Edit mask 1", exact=True).click()
    rae.wait_until_answered()
    rae.press("e", "]", "]", "]", "]")
    rae.drag([(2, 4), (477, 4)])
    rae.press("Enter")
    rae.wait_until_saved()
    rae.page.get_by_role("button", name="Delete mask 2", exact=True).click()
    rae.press("p")
    rae.pick(things_of(0)["kite"])
    rae.press("Enter")
    rae.wait_until_saved()
    verdict(rae, "good, as I leave it")
    rae.until(lambda: reviewed.review(name) is not None)
    review = reviewed.review(name)
    assert review is not None
    assert [mask.annotator for mask in review.masks] == ["Rae", "Rae"]
    corrected, added = (decode_rle(mask.segmentation) for mask in review.masks)
    assert mask_iou(corrected, ball) > 0.95
    assert mask_iou(added, kite) > 0.7
    iou, gone = review.ious
    assert iou == pytest.approx(mask_iou(too_much, corrected))
    assert (gone, review.deleted, review.added) == (0, 1, 1)
    expect(rae.page.locator(".notice")).to_have_text("Nothing is left to review now.")


def test_what_is_sent_back_shows_its_note_to_whoever_does_it_again(
    reviewed: WaitingRound, arrive: Arrive, rae_at: Callable[[str], Person]
) -> None:
    name = hand_in(reviewed, "Ben", things_of(0)["ball"].mask)
    rae = rae_at("review")
    rae.wait_for_image()
    rae.press("Control+Enter")
    dialog = rae.page.get_by_role("dialog", name="Verdict")
    dialog.get_by_label("to be done again").check()
    expect(dialog.get_by_role("button", name="Hand in")).to_be_disabled()
    dialog.get_by_role("textbox").press_sequentially("where is the box?")  # `?` closes no dialog
    rae.page.keyboard.press("Control+Enter")
    rae.wait_until_saved()
    rae.until(lambda: reviewed.counts().submitted == 0)
    ada = arrive(reviewed)
    assert ada.file_name == name
    assert ada.accepted == 1
    expect(ada.page.locator("main .note")).to_contain_text("where is the box?")
    ada.click(ada.things["box"].middle)
    ada.accept()
    ada.submit()
    submission = reviewed.submission(name)
    assert submission is not None
    assert [mask.annotator for mask in submission.masks] == ["Ben", "Ada"]


def test_each_role_sees_its_modes_and_managers_the_dashboard(
    reviewed: WaitingRound, arrive: Arrive, rae_at: Callable[[str], Person]
) -> None:
    hand_in(reviewed, "Zoë", things_of(0)["ball"].mask, things_of(0)["box"].mask)
    ada = arrive(reviewed)
    assert ada.page.get_by_role("navigation", name="Modes").count() == 0
    ada.page.goto(f"{reviewed.server.url}/?decoder=server#dashboard")
    ada.wait_for_image()
    rae = rae_at("dashboard")
    page = rae.page
    expect(page.get_by_role("row", name="Zoë")).to_contain_text("5")  # seconds a mask
    expect(page.get_by_role("img", name="Seconds per mask: 5 s at first")).to_be_visible()
    picture = page.get_by_role("img", name="with its masks").first
    rae.until(lambda: picture.evaluate("image => image.complete && image.naturalWidth") > 0)
    page.get_by_role("navigation", name="Modes").get_by_role("link", name="Review").click()
    rae.wait_for_image()
    assert rae.accepted == 2
    page.go_back()
    expect(page.get_by_role("heading", name="The model")).to_be_visible()
    rae.until(lambda: reviewed.office.desk.queue.counts(0, TaskKind.REVIEW).leased == 0)


def test_automatic_masks_are_audited_by_click_and_eraser(open_at: OpenAt, tmp_path: Path) -> None:
    folder = tmp_path
    write_still_lifes(folder / "drawn", 1)
    lenient = {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.5, "min_mask_region_area": 100}
    automatic = {"points_per_side": 6, "crop_n_layers": 0, "filters": lenient}
    changes = {"checkpoint": "sa-tiny", "fully_automatic": automatic}
    run = TinyRun(folder, [AUTOMATIC], 1, changes=changes)
    run.run()
    queue = open_queue(run.store, run.config)
    prepared = prepare_audit(
        run.store,
        run.config,
        queue,
        Progress(Console(file=StringIO())),
        round_index=0,
        num_images=1,
        seed=0,
    )
    assert prepared == 1
    (record,) = run.records(0)
    token = accounts_of(run.store).add("Rae", Role.REVIEWER)
    server = Server(run.out)
    server.start()
    try:
        rae = open_at(f"{server.url}/?decoder=server", token)
        rae.wait_for_image()
        page = rae.page
        assert rae.accepted == len(record.masks) > 1
        for number in (1, 2):
            page.get_by_role("button", name=f"Edit mask {number}", exact=True).click()
            rae.wait_until_answered()
            left, top, width, height = record.masks[number - 1].bbox
            middle = (int(left + width / 2), int(top + height / 2))
            if number == 1:
                rae.press("e")
                rae.drag([middle, (middle[0] + 5, middle[1])])
            else:
                rae.press("p")
                rae.click(middle)
            rae.press("Enter")
            rae.wait_until_saved()
        verdict(rae, "right, as I leave it")
        rae.until(lambda: audit_report(queue, 0).tasks.submitted)
    finally:
        server.kill()
    found = audit_report(queue, 0).agreement
    assert (found.good, found.compared) == (1, len(record.masks))
    assert len(record.masks) - 2 < found.iou_sum < len(record.masks)
    queue.close()
