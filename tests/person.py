"""A person at the annotation page: what they do with mouse and keys, and what they then see."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from playwright.sync_api import Page

from still_lifes import Thing, things_of
from waiting_rounds import WaitingRound
from web.desk import SavedMask

SECONDS = 20.0
"""After which whatever a person waits for has failed."""

_COLOUR = """([canvas, x, y]) => {
    const ratio = window.devicePixelRatio;
    const element = document.querySelector(canvas);
    return Array.from(element.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data);
}"""


class Arrive(Protocol):
    def __call__(
        self, waiting: WaitingRound, name: str = "Ada", decoder: str = "server"
    ) -> "Person":
        """Somebody signs in, in a browser of their own, and gets an image."""


class Person:
    def __init__(self, page: Page, waiting: WaitingRound) -> None:
        self.page = page
        self._round = waiting
        page.set_default_timeout(1000 * SECONDS)
        self.fetched: set[str] = set()
        """Addresses of what came over the network."""
        self.sent: list[str] = []
        """Addresses of what was asked for, each time."""
        page.context.on("request", lambda request: self.sent.append(request.url))
        page.context.on("requestfinished", lambda request: self.fetched.add(request.url))

    def open(self, decoder: str) -> None:
        self.page.goto(f"{self._round.server.url}/?decoder={decoder}")

    def sign_in(self, token: str) -> None:
        self.page.get_by_label("Your token").fill(token)
        self.page.get_by_role("button", name="Sign in").click()

    def wait_for_image(self) -> None:
        self.page.wait_for_selector("canvas.above[data-phase=working][aria-busy=false]")

    def wait_for_another(self, task_id: int) -> None:
        other = f"canvas.above[data-phase=working]:not([data-task='{task_id}'])"
        self.page.wait_for_selector(other)
        self.wait_for_image()

    # What is there

    @property
    def task_id(self) -> int:
        return int(self._canvas("task"))

    @property
    def tool(self) -> str:
        return self._canvas("tool")

    @property
    def file_name(self) -> str:
        return self.page.locator(".file").inner_text()

    @property
    def things(self) -> dict[str, Thing]:
        return things_of(int(self.file_name.removesuffix(".png")))

    @property
    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    @property
    def view(self) -> tuple[float, float, float]:
        """Scale, x and y of the image on the canvas."""
        return float(self._canvas("scale")), float(self._canvas("x")), float(self._canvas("y"))

    @property
    def accepted(self) -> int:
        return self.page.locator("[data-mask]").count()

    def on_canvas(self, pixel: tuple[int, int]) -> tuple[float, float]:
        scale, x, y = self.view
        return (pixel[0] + 0.5) * scale + x, (pixel[1] + 0.5) * scale + y

    def saved(self) -> tuple[SavedMask, ...]:
        """What the server holds of this image."""
        return self._round.saved(self.task_id)

    def colour(self, canvas: str, pixel: tuple[int, int]) -> list[int]:
        """RGBA that the `above` or the `below` canvas shows at an image pixel."""
        x, y = self.on_canvas(pixel)
        colour: list[int] = self.page.evaluate(_COLOUR, [f"canvas.{canvas}", x, y])
        return colour

    def until(self, happened: Callable[[], Any]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < deadline, self.status
            self.page.wait_for_timeout(50)

    # What is done

    def move(self, pixel: tuple[int, int]) -> None:
        self.page.mouse.move(*self._on_page(pixel))

    def click(self, pixel: tuple[int, int], *, button: Any = "left", key: str = "") -> None:
        if key:
            self.page.keyboard.down(key)
        self.page.mouse.click(*self._on_page(pixel), button=button)
        if key:
            self.page.keyboard.up(key)
        self.wait_until_answered()

    def pick(self, thing: Thing) -> None:
        """Click its middle and choose whole, part or subpart: the one of its size."""
        self.click(thing.middle)
        sizes = {}
        for key in "123":
            self.press(key)
            sizes[key] = int(self.status.removeprefix("Mask of ").split()[0])
        self.press(min(sizes, key=lambda key: abs(sizes[key] - int(thing.mask.sum()))))

    def drag(self, pixels: Sequence[tuple[int, int]]) -> None:
        """Over the pixels, in some steps, with the button held."""
        self.move(pixels[0])
        self.page.mouse.down()
        for pixel in pixels[1:]:
            self.page.mouse.move(*self._on_page(pixel), steps=8)
        self.page.mouse.up()
        self.wait_until_answered()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.wait_until_answered()

    def accept(self) -> None:
        """By the key, until the server has it."""
        before = self.accepted
        self.press("Enter")
        self.until(lambda: self.accepted > before)
        self.wait_until_saved()

    def submit(self) -> None:
        """Until the next image is there, and this one handed in."""
        task_id = self.task_id
        self.press("Control+Enter")
        self.wait_for_another(task_id)
        self.wait_until_saved()

    def wait_until_answered(self) -> None:
        self.page.wait_for_selector("canvas.above[aria-busy=false]")

    def wait_until_saved(self) -> None:
        self.page.wait_for_selector('[data-unsaved="0"]')

    def _canvas(self, name: str) -> str:
        return self.page.locator("canvas.above").get_attribute(f"data-{name}") or ""

    def _on_page(self, pixel: tuple[int, int]) -> tuple[float, float]:
        bounds = self.page.locator("canvas.above").bounding_box()
        assert bounds is not None
        x, y = self.on_canvas(pixel)
        return bounds["x"] + x, bounds["y"] + y
