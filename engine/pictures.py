"""Masks drawn over photographs, and sheets of such pictures: for people."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from engine.images import Pixels
from stages.records import Rle
from stages.rle import Mask, decode_rle, rle_area

Colour = NDArray[np.float32]

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
"""Steps of this angle never come close to an earlier hue until there are many."""
LIGHTNESS = (0.76, 0.65, 0.84)
BORDER_OPACITY = 0.9

GAP, CAPTION_HEIGHT, CAPTION_SIZE, CAPTION_INK = 12, 24, 16, (64, 72, 82)


def overlay(pixels: Pixels, masks: Sequence[Mask | Rle], *, opacity: float = 0.5) -> Pixels:
    """Masks in colour over an image, each with a thin light border.

    The largest lie lowest, so that parts show on their wholes; an upper mask hides the colour of a
    lower one, as a mixture would belong to neither. Colours follow the order of size alone.

    Args:
        pixels: (H, W, 3).
        masks: of the same size.
        opacity: of the colours within the borders, 0 to 1.
    """
    size_hw = pixels.shape[:2]
    colours = np.zeros_like(pixels, dtype=np.float32)
    strength = np.zeros((*size_hw, 1), dtype=np.float32)
    for rank, mask in enumerate(sorted(masks, key=_area, reverse=True)):
        drawn = decode_rle(mask) if isinstance(mask, Rle) else mask
        if drawn.shape != size_hw:
            raise ValueError(f"a mask of {drawn.shape} on an image of {size_hw}; expected one size")
        window = _window(drawn)
        inside = drawn[window]
        border = inside & ~_eroded(inside, max(1, round(min(size_hw) / 450)))
        colour = mask_colour(rank)
        colours[window][inside] = colour
        colours[window][border] = (colour + 255) / 2
        strength[window][inside] = opacity
        strength[window][border] = BORDER_OPACITY
    return np.rint(pixels + (colours - pixels) * strength).astype(np.uint8)


def mask_colour(rank: int) -> Colour:
    """(3,) RGB, 0 to 255: hues apart for neighbouring ranks, all of like strength to the eye.

    Hues are turned in Oklab (Ottosson 2020), where equal steps look equal.
    """
    hue, lightness, chroma = rank * GOLDEN_ANGLE, LIGHTNESS[rank % len(LIGHTNESS)], 0.16
    lab = np.asarray((lightness, chroma * math.cos(hue), chroma * math.sin(hue)))
    cones = np.asarray(
        (
            (1.0, 0.3963377774, 0.2158037573),
            (1.0, -0.1055613458, -0.0638541728),
            (1.0, -0.0894841775, -1.2914855480),
        )
    )
    linear_rgb = np.asarray(
        (
            (4.0767416621, -3.3077115913, 0.2309699292),
            (-1.2684380046, 2.6097574011, -0.3413193965),
            (-0.0041960863, -0.7034186147, 1.7076147010),
        )
    )
    linear = np.clip(linear_rgb @ (cones @ lab) ** 3, 0.0031308, 1)
    return np.asarray(255 * (1.055 * linear ** (1 / 2.4) - 0.055), dtype=np.float32)


def contact_sheet(
    pictures: Sequence[Pixels],
    captions: Sequence[str] = (),
    *,
    columns: int = 3,
    width: int = 1500,
) -> Pixels:
    """Pictures in rows that fill the sheet's width, each row as high as that makes it.

    Args:
        captions: one below each picture, shortened to its width; or none at all.
        width: of the sheet, pixels.
    """
    if not pictures or len(captions) not in (0, len(pictures)):
        raise ValueError(
            f"{len(pictures)} pictures and {len(captions)} captions on a contact sheet; expected "
            "at least one picture, and a caption for each or for none"
        )
    starts = range(0, len(pictures), columns)
    rows = [_row(pictures[i : i + columns], columns if i else 0, width) for i in starts]
    below = GAP + (CAPTION_HEIGHT if captions else 0)
    sheet = Image.new("RGB", (width, GAP + sum(row[0].height + below for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    y, remaining = GAP, iter(captions)
    for row in rows:
        x = GAP
        for cell in row:
            sheet.paste(cell, (x, y))
            _caption(draw, (x, y + cell.height + 4), next(remaining, ""), cell.width)
            x += cell.width + GAP
        y += row[0].height + below
    return np.array(sheet, dtype=np.uint8)


def png_bytes(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _area(mask: Mask | Rle) -> int:
    return rle_area(mask) if isinstance(mask, Rle) else int(mask.sum())


def _window(mask: Mask) -> tuple[slice, slice]:
    """The rows and columns a mask lies in; nothing for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _eroded(mask: Mask, width: int) -> Mask:
    """Without the pixels within `width` of the outside; the window's edge is outside."""
    shrunk = ndimage.minimum_filter(mask.view(np.uint8), 2 * width + 1, mode="constant", cval=0)
    return np.asarray(shrunk, dtype=bool)


def _row(pictures: Sequence[Pixels], slots: int, width: int) -> list[Image.Image]:
    """Pictures at the one height at which they fill the width.

    Args:
        slots: a short row is made as if it went on to this many pictures of its mean shape.
    """
    slots = max(slots, len(pictures))
    aspects = sum(picture.shape[1] / picture.shape[0] for picture in pictures)
    height = (width - GAP * (slots + 1)) / (aspects * slots / len(pictures))
    return [
        Image.fromarray(picture).resize(
            (max(1, int(height * picture.shape[1] / picture.shape[0])), max(1, int(height))),
            Image.Resampling.LANCZOS,
        )
        for picture in pictures
    ]


def _caption(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, width: int) -> None:
    font = ImageFont.load_default(CAPTION_SIZE)
    shown = text
    while len(shown) > 1 and draw.textlength(shown, font) > width:
        shown = shown[:-2].rstrip() + "…"
    draw.text(xy, shown, fill=CAPTION_INK, font=font)
