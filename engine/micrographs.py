"""Drawn micrographs: crowded cells under a microscope, far from any photograph.

A second domain with known masks, for showing that the loop takes a checkpoint to images it has
never seen. One colour of stain, bright on dark or dark on bright; cells touch and hide each other,
some are faint, and each has a nucleus of another shade that is no mask of its own. Specks of dirt
are no masks either.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from engine.scenes import Field, Scene, smooth_noise

MIN_VISIBLE = 0.4
"""Of a cell, below which what others leave of it is no mask."""

Rng = np.random.Generator


def draw_micrograph(seed: int, index: int, size_hw: tuple[int, int] = (384, 512)) -> Scene:
    """The micrograph of this number, the same every time."""
    rng = np.random.default_rng([seed, index, 1])
    H, W = size_hw
    scale = min(H, W) / 384
    density = 0.15 * smooth_noise(size_hw, 6, rng) + 0.06 * smooth_noise(size_hw, 40, rng)
    labels = np.zeros(size_hw, dtype=np.int16)
    areas = [0]
    radius = rng.uniform(9, 20) * scale
    for _ in range(int(rng.integers(25, 70))):
        outline = _outline(radius * float(np.exp(rng.normal(0, 0.2))), rng)
        centre = rng.uniform((0, 0), (W, H))
        inside = _fill(outline + centre, size_hw)
        # Cells press against each other; only now and then does one lie over another.
        most = 0.35 if rng.random() < 0.2 else 0.05
        if not inside.any() or (labels[inside] > 0).mean() > most:
            continue
        _stain(density, outline, centre, rng)
        labels[inside] = len(areas)
        areas.append(int(inside.sum()))
    for _ in range(int(rng.integers(0, 25))):
        speck = _outline(rng.uniform(1, 3) * scale, rng) + rng.uniform((0, 0), (W, H))
        density[_fill(speck, size_hw)] += rng.uniform(0.3, 1.0)
    masks = [labels == cell for cell in range(len(areas))]
    kept = [masks[cell] for cell in range(1, len(areas)) if _is_seen(masks[cell], areas[cell])]
    return Scene(_expose(density, rng), tuple(kept), (None,) * len(kept))


def _is_seen(mask: NDArray[np.bool_], area: int) -> bool:
    return bool(mask.sum() >= MIN_VISIBLE * area)


def _outline(radius: float, rng: Rng) -> NDArray[np.float64]:
    """(n, 2) xy around the origin: an ellipse with a few bumps."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    bumps = np.zeros_like(angles)
    for k in (2, 3, 4):
        bumps += rng.normal(0, 0.12 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    longer = np.exp(abs(rng.normal(0, 0.25)))
    ring = np.stack([longer * np.cos(angles), np.sin(angles) / longer], axis=1)
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outline: NDArray[np.float64] = radius * (1 + bumps)[:, None] * (ring @ rotation)
    return outline


def _stain(
    density: Field, outline: NDArray[np.float64], centre: NDArray[np.float64], rng: Rng
) -> None:
    """Cell body, membrane and nucleus, each taking up more or less of the stain."""
    body = rng.uniform(0.25, 0.7)
    size_hw = (density.shape[0], density.shape[1])
    inside = _fill(outline + centre, size_hw)
    density[inside] = 0.3 * density[inside] + body
    within = _fill(0.85 * outline + centre, size_hw)
    density[inside & ~within] += rng.uniform(0.0, 0.25)
    offset = 0.2 * outline[rng.integers(len(outline))]
    nucleus = _fill(rng.uniform(0.35, 0.55) * outline + offset + centre, size_hw)
    density[nucleus] += rng.choice([-1, 1]) * rng.uniform(0.05, 0.35)
    grain = rng.standard_normal(int(inside.sum()), dtype=np.float32)
    density[inside] += rng.uniform(0.02, 0.12) * grain


def _fill(outline: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    image = Image.new("1", (size_hw[1], size_hw[0]))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in outline.tolist()], fill=1)
    return np.asarray(image)


def _expose(density: Field, rng: Rng) -> NDArray[np.uint8]:
    """Stain to pixels: fluorescence shines, other stains swallow light; then lens and noise."""
    lens = ImageFilter.GaussianBlur(float(rng.uniform(0.7, 1.6)))
    hue = rng.dirichlet((1.5, 1.5, 1.5)).astype(np.float32) * 3
    uneven = 1 + 0.15 * smooth_noise(density.shape, 2, rng)
    uneven, stain = uneven[..., None], np.clip(density, 0, 1.5)[..., None]
    shining = 0.05 + 0.6 * stain * hue * uneven
    stained = 0.92 * uneven * np.exp(-1.1 * stain * (1.6 - hue.clip(0, 1.5)))
    light = shining if rng.random() < 0.5 else stained
    image = Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8)).filter(lens)
    noise = rng.standard_normal(density.shape, dtype=np.float32)[..., None] * rng.uniform(3, 14)
    pixels: NDArray[np.uint8] = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    return pixels
