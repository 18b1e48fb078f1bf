"""The annotation page in Chromium: how soon the next image takes a click, how smoothly it moves.

    python -m benchmarks.annotation_page

Needs the built page (`make ui`), Playwright (the `dev` extras) and Debian's chromium. A round of
drawn scenes waits for people; its server runs in a process of its own. Printed, in milliseconds:

- `next`: from Ctrl+Enter until the next image takes a click, and until a click on it is answered,
  after a few seconds on each image;
- `frames`: time between frames while somebody zooms, pans, hovers and paints over a 2250x1500 image
  that holds 300 masks. An idle page shows a frame every 16.7 ms.

Chromium draws without a GPU here: its figures are the slowest that anybody sees.
"""

import argparse
import json
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from benchmarks.annotators import HEADER, server, waiting_desk
from engine.store import open_store
from stages.rle import encode_rle
from web.accounts import Role
from web.serve import accounts_of

SIZE_HW = (1500, 2250)
MASKS = 300
CONFIG = """
name: page
checkpoint: sa-tiny
sources: [{{kind: scenes, name: scenes, count: {images}, seed: 0, size_hw: [{height}, {width}]}}]
corpus: {{held_out_fraction: 0}}
rounds: [{{stage: assisted_manual, source: scenes, annotator: people, retrain: false}}]
images_per_shard: 16
"""
FLAGS = ["--disable-gpu", "--no-sandbox", "--no-first-run", "--disable-background-networking"]

WATCH_NEXT = """() => {
    const canvas = document.querySelector("canvas.above");
    const task = canvas.dataset.task;
    const times = (window.nextTimes = {});
    addEventListener("keydown", () => (times.submitted ??= performance.now()), { capture: true });
    new MutationObserver(() => {
        const { phase, task: now } = canvas.dataset;
        if (phase === "working" && now !== task) times.ready ??= performance.now();
    }).observe(canvas, { attributes: true });
}"""
START_FRAMES = """() => {
    const times = (window.frameTimes = []);
    window.watchFrames = true;
    const frame = (now) => {
        times.push(now);
        if (window.watchFrames) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
}"""
STOP_FRAMES = """() => {
    window.watchFrames = false;
    return window.frameTimes.slice(1).map((time, at) => time - window.frameTimes[at]);
}"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="submitted one after the other")
    parser.add_argument("--seconds", type=float, default=6.0, help="on each image")
    parser.add_argument("--decoder", choices=["page", "server"], default="page")
    parser.add_argument("--port", type=int, default=8766)
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="sa-engine-") as folder:
        store = open_store(folder)
        height, width = SIZE_HW
        images = 2 * options.images + 2
        config = CONFIG.format(images=images, height=height, width=width)
        desk, _ = waiting_desk(store, config)
        accounts = accounts_of(store)
        token = accounts.add("Ada", Role.ANNOTATOR)
        with server(folder, options.port) as url, sync_playwright() as playwright:
            browser = chromium(playwright)
            fill_first_image(url, accounts.add("Bob", Role.ANNOTATOR))
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            sign_in(page, f"{url}/?decoder={options.decoder}", token)
            report_frames(page)
            report_next(page, options.images, options.seconds)
            browser.close()
        desk.close()


def chromium(playwright: Playwright) -> Browser:
    found = shutil.which("chromium")
    if found is None:
        raise SystemExit("no chromium on the PATH: apt-get install chromium")
    return playwright.chromium.launch(executable_path=found, args=FLAGS)


def fill_first_image(url: str, token: str) -> None:
    """Masks of somebody who went home."""
    rng = np.random.default_rng(0)
    with httpx.Client(base_url=url, headers=HEADER, timeout=120) as client:
        client.post("/api/login", json={"token": token}).raise_for_status()
        task = client.post("/api/tasks/claim").raise_for_status().json()
        place, lease = f"/api/tasks/{task['task_id']}", {"lease": task["lease"]}
        for _ in range(MASKS):
            body = lease | {"mask": blob(rng)}
            client.put(f"{place}/masks/{uuid.uuid4().hex}", json=body).raise_for_status()
        client.post(f"{place}/release", json=lease).raise_for_status()


def blob(rng: np.random.Generator) -> dict[str, Any]:
    """An ellipse somewhere, as large as objects in SA-1B mostly are."""
    height, width = SIZE_HW
    y, x = np.ogrid[:height, :width]
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    ry, rx = np.exp(rng.uniform(np.log(12), np.log(260), 2))
    rle = encode_rle(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1 + 1 / min(ry, rx))
    click = {
        "kind": "point",
        "coords": [float(int(cx)), float(int(cy))],
        "label": 1,
        "output": 0,
        "seconds": 1.0,
        "predicted_iou": 0.8,
        "answer": rle.model_dump(mode="json"),
    }
    return {
        "segmentation": rle.model_dump(mode="json"),
        "predicted_iou": 0.8,
        "stability_score": 0.9,
        "seconds": 1.0,
        "interactions": [click],
    }


def sign_in(page: Page, url: str, token: str) -> None:
    page.set_default_timeout(120_000)
    page.goto(url)
    page.get_by_label("Your token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    wait_until_idle(page)


def wait_until_idle(page: Page) -> None:
    page.wait_for_selector("canvas.above[data-phase=working][aria-busy=false]")


def report_frames(page: Page) -> None:
    assert page.locator("[data-mask]").count() == MASKS
    bounds = page.locator("canvas.above").bounding_box()
    assert bounds is not None
    left, top, width, height = (bounds[key] for key in ("x", "y", "width", "height"))
    mouse = page.mouse

    def place(turn: float) -> tuple[float, float]:
        angle = 2 * np.pi * turn
        x = left + width * (0.5 + 0.3 * np.cos(angle))
        return float(x), float(top + height * (0.5 + 0.3 * np.sin(angle)))

    def zoom(step: int) -> None:
        mouse.wheel(0, -60 if step % 80 < 40 else 60)

    def move(step: int) -> None:
        mouse.move(*place(step / 60))

    mouse.move(*place(0))
    wait_until_idle(page)
    page.wait_for_timeout(2000)
    show_frames(page, "idle", lambda step: page.wait_for_timeout(16))
    show_frames(page, "zoom", zoom)
    page.keyboard.press("0")
    page.keyboard.down(" ")
    mouse.down()
    show_frames(page, "pan", move)
    mouse.up()
    page.keyboard.up(" ")
    page.keyboard.press("0")
    show_frames(page, "hover", move)
    mouse.click(*place(0))
    wait_until_idle(page)
    page.keyboard.press("b")
    mouse.down()
    show_frames(page, "paint", move)
    mouse.up()
    page.keyboard.press("p")
    page.keyboard.press("Escape")
    wait_until_idle(page)


def show_frames(page: Page, what: str, act: Callable[[int], object], seconds: float = 4.0) -> None:
    page.evaluate(START_FRAMES)
    deadline, step = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        act(step)
        step += 1
    show({"frames": what} | figures(page.evaluate(STOP_FRAMES)))


def report_next(page: Page, images: int, seconds: float) -> None:
    ready: list[float] = []
    answered: list[float] = []
    for _ in range(images):
        page.wait_for_timeout(1000 * seconds)
        task = page.locator("canvas.above").get_attribute("data-task")
        page.evaluate(WATCH_NEXT)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(f"canvas.above[data-phase=working]:not([data-task='{task}'])")
        times = page.evaluate("() => window.nextTimes")
        ready.append(times["ready"] - times["submitted"])
        page.locator("canvas.above").click()
        wait_until_idle(page)
        now = page.evaluate("() => performance.now()")
        answered.append(now - times["submitted"])
        page.keyboard.press("Escape")
        wait_until_idle(page)
    show({"next": "takes a click"} | figures(ready))
    show({"next": "answered a click"} | figures(answered))


def figures(values: Sequence[float]) -> dict[str, Any]:
    median, p95 = np.percentile(values, [50, 95])
    worst = max(values)
    return {
        "number": len(values),
        "median": round(float(median), 1),
        "p95": round(float(p95), 1),
        "worst": round(worst, 1),
    }


def show(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
