"""Pictures of the annotation page for the README, on photographs that scikit-image ships.

    python -m benchmarks.page_pictures docs

Needs what `benchmarks.annotation_page` needs. Written: annotate.jpg (stage one, with a mask in the
making), stage_two.jpg (locked masks), review.jpg and dashboard.jpg.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.annotation_page import chromium, sign_in, wait_until_idle
from benchmarks.annotators import server, waiting_desk
from engine.store import open_store
from web.accounts import Role
from web.serve import accounts_of

STAGE_ONE = """
name: photographs
checkpoint: sa-tiny
sources: [{kind: skimage, name: photographs, files: [astronaut.png, coffee.png, chelsea.png]}]
corpus: {held_out_fraction: 0}
rounds:
  - stage: assisted_manual
    source: photographs
    annotator: people
    retrain: false
    review_share: 1
"""
STAGE_TWO = """
name: photographs
checkpoint: sa-tiny
sources:
  - {kind: scenes, name: scenes, count: 4}
  - {kind: skimage, name: photographs, files: [astronaut.png]}
corpus: {held_out_fraction: 0}
retraining: {detector_training: {steps: 150, batch_images: 2}}
semi_automatic:
  detector_score_thresh: 0
  max_boxes: 8
  filters: {pred_iou_thresh: 0.3, stability_score_thresh: 0.3}
rounds:
  - {stage: assisted_manual, source: scenes, retrain: false}
  - {stage: semi_automatic, source: photographs, annotator: people, retrain: false}
"""
Prompt = tuple[float, ...]
FACE, STRIPE, SLEEVE = (240, 110), (60, 150), (120, 330)
ROCKET, COLLAR = (355, 5, 460, 290), (110, 150, 350, 300)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8767)
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        picture_stage_one(browser, options.folder, options.port)
        picture_stage_two(browser, options.folder, options.port + 1)
        browser.close()


def picture_stage_one(browser: Browser, pictures: Path, port: int) -> None:
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        store = open_store(folder)
        desk, _ = waiting_desk(store, STAGE_ONE)
        accounts = accounts_of(store)
        tokens = {name: accounts.add(name, Role.MANAGER) for name in ("Ada", "Grace")}
        with server(folder, port) as url:
            ada = arrive(browser, url, tokens["Ada"])
            while "astronaut" not in ada.locator(".file").inner_text():
                go_on(ada)
            for prompt in (FACE, ROCKET, STRIPE):
                draw(ada, prompt)
                accept(ada)
            draw(ada, COLLAR)
            ada.screenshot(path=pictures / "annotate.jpg", quality=88)
            accept(ada)
            ada.keyboard.press("Control+Enter")
            ada.wait_for_selector('[data-unsaved="0"]')
            grace = arrive(browser, f"{url}/#review", tokens["Grace"])
            grace.screenshot(path=pictures / "review.jpg", quality=88)
            grace.goto(f"{url}/#dashboard")
            grace.reload()
            grace.wait_for_load_state("networkidle")
            grace.wait_for_timeout(1000)
            grace.screenshot(path=pictures / "dashboard.jpg", quality=88)
        desk.close()


def picture_stage_two(browser: Browser, pictures: Path, port: int) -> None:
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        store = open_store(folder)
        desk, _ = waiting_desk(store, STAGE_TWO)
        token = accounts_of(store).add("Ada", Role.ANNOTATOR)
        with server(folder, port) as url:
            ada = arrive(browser, url, token)
            draw(ada, SLEEVE)
            accept(ada)
            ada.screenshot(path=pictures / "stage_two.jpg", quality=88)
        desk.close()


def arrive(browser: Browser, url: str, token: str) -> Page:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    address, _, mode = url.partition("#")
    sign_in(page, f"{address}?decoder=server#{mode}", token)
    return page


def go_on(page: Page) -> None:
    """To another image."""
    task = page.locator("canvas.above").get_attribute("data-task")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(f"canvas.above[data-phase=working]:not([data-task='{task}'])")


def draw(page: Page, prompt: Prompt) -> None:
    """A click at (x, y), or a box over (x0, y0, x1, y1); image pixels."""
    places = [on_page(page, x, y) for x, y in zip(prompt[::2], prompt[1::2], strict=True)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[-1], steps=4)
    page.mouse.up()
    wait_until_idle(page)


def accept(page: Page) -> None:
    page.keyboard.press("Enter")
    wait_until_idle(page)
    page.wait_for_selector('[data-unsaved="0"]')


def on_page(page: Page, x: float, y: float) -> tuple[float, float]:
    canvas = page.locator("canvas.above")
    bounds = canvas.bounding_box()
    assert bounds is not None
    scale, left, top = (
        float(canvas.get_attribute(f"data-{name}") or 0) for name in ("scale", "x", "y")
    )
    return bounds["x"] + left + x * scale, bounds["y"] + top + y * scale


if __name__ == "__main__":
    main()
