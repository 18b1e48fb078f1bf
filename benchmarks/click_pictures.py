"""Pictures of what one click gets, for the model card: the good cases and the bad ones.

    python -m benchmarks.click_pictures --out docs/clicks.png

The photographs come with scikit-image. Each picture shows the click and all three outputs as
outlines; the filled one is that of the highest predicted IoU. There is no ground truth, so which
row a case belongs to was judged by eye, for the checkpoint that the model card describes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw
from scipy import ndimage

from engine.images import Pixels
from engine.pictures import contact_sheet, overlay, png_bytes
from model.checkpoint import load_checkpoint
from model.sam import Sam
from stages.predictor import Predictor, embed

COLUMNS = 5
DOT = 5


@dataclass(frozen=True)
class Click:
    photograph: str
    what: str
    x: int
    y: int


GOOD = (
    Click("astronaut.png", "head", 215, 110),
    Click("coffee.png", "inside of the cup", 290, 140),
    Click("coffee.png", "spoon", 365, 280),
    Click("motorcycle_left.png", "tank", 420, 215),
    Click("chelsea.png", "iris", 172, 116),
)
BAD = (
    Click("astronaut.png", "spacesuit", 250, 330),
    Click("coffee.png", "saucer", 120, 260),
    Click("camera.png", "coat", 130, 330),
    Click("camera.png", "tripod", 295, 420),
    Click("chelsea.png", "head", 180, 200),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="sa-tiny")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    sam = load_checkpoint(options.checkpoint).sam
    clicks = (*GOOD, *BAD)
    captions = [f"{kind}: {c.what}" for kind, row in (("good", GOOD), ("bad", BAD)) for c in row]
    pictures = [_square(draw_click(sam, click)) for click in clicks]
    options.out.write_bytes(png_bytes(contact_sheet(pictures, captions, columns=COLUMNS)))


def draw_click(sam: Sam, click: Click) -> Pixels:
    with Image.open(Path(skimage.data.__file__).parent / click.photograph) as file:
        pixels = np.asarray(file.convert("RGB"))
    predictor = Predictor(sam, pixels.shape[:2], embed(sam, pixels))
    answer = predictor.predict(((click.x, click.y),), (1,), multimask_output=True)
    drawn = overlay(pixels, [answer.masks[answer.best]])
    for mask in answer.masks:
        drawn[mask & ~ndimage.binary_erosion(mask, iterations=2)] = 255
    picture = Image.fromarray(drawn)
    box = (click.x - DOT, click.y - DOT, click.x + DOT, click.y + DOT)
    ImageDraw.Draw(picture).ellipse(box, fill="lime", outline="black", width=2)
    return np.asarray(picture)


def _square(pixels: Pixels) -> Pixels:
    """On a white square, so that the rows of the sheet are the good ones and the bad ones."""
    side = max(pixels.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    square[: pixels.shape[0], : pixels.shape[1]] = pixels
    return square


if __name__ == "__main__":
    main()
