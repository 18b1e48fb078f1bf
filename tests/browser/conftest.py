"""Chromium, rounds that wait for people, and the people."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from person import SECONDS, Arrive, Person
from waiting_rounds import STAGE_ONE, STAGE_TWO, WaitingRound, waiting_round
from web.page import STATIC

REQUIRED = "SA_ENGINE_REQUIRE_BROWSER"
"""Set where a missing browser or page is a failure: in CI."""
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        _leave_out("no chromium on the PATH: apt-get install chromium")
    if not (STATIC / "index.html").is_file():
        _leave_out("the page is not built: make ui")
    expect.set_options(timeout=1000 * SECONDS)
    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield launched
        launched.close()


def _leave_out(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="package")
def served_stage_one(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WaitingRound]:
    with waiting_round(tmp_path_factory.mktemp("one"), STAGE_ONE, 4) as served:
        yield served


@pytest.fixture
def stage_one(served_stage_one: WaitingRound) -> WaitingRound:
    """Four images, of which nothing is done."""
    served_stage_one.begin_anew()
    return served_stage_one


@pytest.fixture(scope="package")
def served_stage_two(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WaitingRound]:
    # A detector of a few steps finds ball and box, and is as unsure of them as the model is.
    filters = {"pred_iou_thresh": 0.2, "stability_score_thresh": 0, "min_mask_region_area": 0}
    changes: dict[str, Any] = {
        "retraining": {"detector_training": {"steps": 40, "batch_images": 2}},
        "semi_automatic": {"detector_score_thresh": 0, "max_boxes": 3, "filters": filters},
    }
    with waiting_round(tmp_path_factory.mktemp("two"), STAGE_TWO, 4, **changes) as served:
        yield served


@pytest.fixture
def stage_two(served_stage_two: WaitingRound) -> WaitingRound:
    """Two images with prefilled masks, of which nothing is done."""
    served_stage_two.begin_anew()
    return served_stage_two


@pytest.fixture
def arrive(browser: Browser) -> Iterator[Arrive]:
    """Somebody opens the page in a browser of their own, signs in and gets an image."""
    contexts = []

    def arrive(waiting: WaitingRound, name: str = "Ada", decoder: str = "server") -> Person:
        context = browser.new_context(viewport={"width": 1200, "height": 760})
        contexts.append(context)
        person = Person(context.new_page(), waiting)
        person.open(decoder)
        person.sign_in(waiting.token(name))
        person.wait_for_image()
        return person

    yield arrive
    for context in contexts:
        context.close()


@pytest.fixture(scope="package")
def zooming(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WaitingRound]:
    """Two images of stage one, whose small objects are looked at twice."""
    with waiting_round(tmp_path_factory.mktemp("zooming"), STAGE_ONE, 2, zoom_in=True) as served:
        yield served


@pytest.fixture(scope="package")
def snapping(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WaitingRound]:
    """Two images of stage one, whose masks are made of superpixels, small ones' of a crop's."""
    changes: dict[str, Any] = {"zoom_in": True, "snap": True}
    with waiting_round(tmp_path_factory.mktemp("snapping"), STAGE_ONE, 2, **changes) as served:
        yield served
