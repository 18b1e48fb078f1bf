"""Drawn images of four plain things: the shipped model finds them, and tests know their masks."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from stages.rle import Mask, encode_rle

SIZE_HW = (320, 480)


@dataclass(frozen=True)
class Thing:
    mask: Mask
    colour: tuple[int, int, int]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Outermost pixels: (x0, y0, x1, y1)."""
        ys, xs = np.nonzero(self.mask)
        return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())

    @property
    def middle(self) -> tuple[int, int]:
        """(x, y)"""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) // 2, (y0 + y1) // 2


def things_of(number: int) -> dict[str, Thing]:
    """What image `number` shows, the same every time."""
    rng = np.random.default_rng([7, number])
    dx, dy = (int(shift) for shift in rng.integers(-12, 13, 2))
    y, x = np.indices(SIZE_HW)
    ball = (x - 110 - dx) ** 2 + (y - 110 - dy) ** 2 <= 62**2
    box = (abs(x - 330 - dy) <= 90) & (abs(y - 90 - dx) <= 44)
    kite = abs(x - 340 + dx) / 80 + abs(y - 235 - dy) / 55 <= 1
    pebble = ((x - 120 + dy) / 45) ** 2 + ((y - 255 + dx) / 28) ** 2 <= 1
    return {
        "ball": Thing(ball, (205, 62, 48)),
        "box": Thing(box, (48, 96, 190)),
        "kite": Thing(kite, (235, 190, 60)),
        "pebble": Thing(pebble, (245, 245, 240)),
    }


def draw_still_life(number: int) -> NDArray[np.uint8]:
    """(H, W, 3)"""
    rng = np.random.default_rng([8, number])
    pixels = np.linspace(70, 105, SIZE_HW[0])[:, None, None] + np.array([0.0, 14.0, 6.0])
    pixels = pixels + _grain(rng, 3, 10) + _grain(rng, 1, 5)
    for thing in things_of(number).values():
        painted = np.array(thing.colour) + _grain(rng, 2, 6)
        pixels[thing.mask] = painted[thing.mask]
    pixels = gaussian_filter(pixels, (0.8, 0.8, 0))
    return np.asarray(pixels.clip(0, 255), dtype=np.uint8)


def write_still_lifes(folder: Path, count: int) -> None:
    """A COCO-style folder: `images/*.png` and `instances.json`."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        name = f"{number:03d}.png"
        Image.fromarray(draw_still_life(number)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name})
        for thing in things_of(number).values():
            rle = encode_rle(thing.mask).model_dump(mode="json")
            annotations.append({"image_id": number, "segmentation": rle})
    content = {"images": images, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(content))


def _grain(rng: np.random.Generator, width: float, strength: float) -> NDArray[np.float64]:
    """(H, W, 1): blurred noise, as nothing that a camera saw is quite flat."""
    noise = gaussian_filter(rng.normal(size=SIZE_HW), width)
    return np.asarray(noise / noise.std() * strength)[..., None]
