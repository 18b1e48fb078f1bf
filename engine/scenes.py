"""Drawn scenes: photograph-like clutter whose every mask is known to the pixel.

A scene is stuff (sky, wall, ground) with things on it (`engine/scene_shapes.py`), whose parts are
masks too. Things hide each other, throw shadows, are lit from one side and carry textures that vary
as much within a region as between regions. One buffer holds the topmost node of every pixel, so
masks are exact and visible parts only. A scene is keyed by (seed, index): the same pair is the same
scene anywhere.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from engine.scene_shapes import THINGS, Ring, Rng, Shape
from stages.rle import encode_rle, rle_bbox

MIN_AREA = 40
"""Pixels of a 480x640 scene below which a visible part is no mask of its own."""
MAX_MASKS = 25
"""Of a scene; the smallest are left out."""

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    masks: tuple[NDArray[np.bool_], ...]
    """(H, W) each, visible parts; a part lies within its parent."""
    parents: tuple[int | None, ...]
    """For each mask the index of the mask it is a part of."""


@dataclass
class _Canvas:
    """What is painted so far."""

    pixels: Field
    """(H, W, 3) in [0, 1]."""
    topmost: NDArray[np.int16]
    """(H, W): which node is seen."""
    parents: list[int | None] = field(default_factory=list)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.topmost.shape[0], self.topmost.shape[1]

    def add_node(self, parent: int | None) -> int:
        self.parents.append(parent)
        return len(self.parents) - 1


def draw_scene(seed: int, index: int, size_hw: tuple[int, int] = (480, 640)) -> Scene:
    """The scene of this number, the same every time."""
    rng = np.random.default_rng([seed, index])
    H, W = size_hw
    canvas = _Canvas(np.zeros((H, W, 3), np.float32), np.zeros((H, W), np.int16))
    palette = _draw_palette(rng)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), -abs(np.sin(angle))]) * rng.uniform(0.3, 1.0)
    _paint_stuff(canvas, palette, rng)
    count = int(rng.integers(3, 13))
    # Far things first, and small: near ones cover them.
    sizes = np.sort(np.exp(rng.uniform(np.log(0.035), np.log(0.42), count)))
    for size in sizes:
        kind = THINGS[rng.integers(len(THINGS))]
        _paint_thing(canvas, kind(rng), size * min(H, W), palette, light, rng)
    pixels = _photograph(canvas.pixels, rng)
    return _collect(canvas, pixels, MIN_AREA * H * W / (480 * 640))


def write_scenes(
    directory: Path,
    seed: int,
    count: int,
    size_hw: tuple[int, int] = (480, 640),
    draw: Callable[[int, int, tuple[int, int]], Scene] = draw_scene,
) -> None:
    """Lay scenes out as a COCO-style folder: `images/*.jpg` and `instances.json`.

    Images that are already there are kept, the JSON is written last: repeating a stopped call
    completes the folder.

    Args:
        draw: the scene of a seed, an index and a size.
    """
    images_dir = directory / "images"
    images_dir.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = draw(seed, index, size_hw)
        name = f"scene_{seed}_{index:06d}.jpg"
        if not (images_dir / name).exists():
            encoded = io.BytesIO()
            Image.fromarray(scene.pixels).save(encoded, "JPEG", quality=95)
            _write_whole(images_dir / name, encoded.getvalue())
        images.append({"id": index, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
        first_id = len(annotations)
        for mask, parent in zip(scene.masks, scene.parents, strict=True):
            rle = encode_rle(mask)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": index,
                    "category_id": 1,
                    "segmentation": rle.model_dump(mode="json"),
                    "area": int(mask.sum()),
                    "bbox": rle_bbox(rle),
                    "iscrowd": 0,
                    "part_of": None if parent is None else first_id + parent,
                }
            )
    document = {
        "info": {"description": f"drawn scenes, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    _write_whole(directory / "instances.json", json.dumps(document).encode())


def _write_whole(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.staged")
    staged.write_bytes(content)
    staged.replace(path)


def _collect(canvas: _Canvas, pixels: NDArray[np.uint8], min_area: float) -> Scene:
    """Every node's mask is what is seen of it and of its parts; slivers are left out."""
    masks: dict[int, NDArray[np.bool_]] = {}
    # Parts are numbered after what they are part of, so walking back meets parts first.
    for node in reversed(range(len(canvas.parents))):
        mask = masks.get(node, False) | (canvas.topmost == node)
        masks[node] = mask
        parent = canvas.parents[node]
        if parent is not None:
            masks[parent] = masks.get(parent, False) | mask
    kept: list[int] = []
    for node in sorted(masks):
        area, parent = int(masks[node].sum()), canvas.parents[node]
        # A part that is all that is seen of its parent is not a second mask.
        whole = parent is not None and area > 0.95 * masks[parent].sum()
        if area >= min_area and not whole:
            kept.append(node)
    largest = sorted(kept, key=lambda node: int(masks[node].sum()), reverse=True)[:MAX_MASKS]
    kept = sorted(largest)
    new_index = {node: i for i, node in enumerate(kept)}
    parents = []
    for node in kept:
        parent = canvas.parents[node]
        while parent is not None and parent not in new_index:
            parent = canvas.parents[parent]
        parents.append(None if parent is None else new_index[parent])
    return Scene(pixels, tuple(masks[node] for node in kept), tuple(parents))


def _draw_palette(rng: Rng) -> Field:
    """(n, 3) colours of one scene: two families of hues, mostly dull as outdoors, a few loud."""
    n = 12
    family = rng.choice([0.03, 0.08, 0.12, 0.17, 0.27, 0.36, 0.56, 0.62, rng.uniform()], 2)
    hue = (rng.choice(family, n) + rng.normal(0, 0.04, n)) % 1
    saturation = np.clip(rng.beta(1.2, 3.2, n), 0, 0.95)
    loud = rng.random(n) < 0.15
    hue[loud], saturation[loud] = rng.uniform(size=loud.sum()), rng.uniform(0.5, 0.95, loud.sum())
    value = rng.uniform(0.1, 0.97, n)
    sextant = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    chroma = np.clip(np.minimum(sextant, 4 - sextant), 0, 1)
    return np.asarray(value[:, None] * (1 - saturation[:, None] * chroma), dtype=np.float32)


def _paint_stuff(canvas: _Canvas, palette: Field, rng: Rng) -> None:
    """Two to four grounds behind everything, parted by rough lines: sky, hills, a floor."""
    H, W = canvas.size_hw
    canvas.topmost[:] = canvas.add_node(None)
    canvas.pixels[:] = _texture((H, W), palette, rng, calm=rng.random() < 0.6)
    for level in np.sort(rng.uniform(0.15, 0.95, int(rng.integers(0, 4)))):
        line = level + rng.uniform(-0.2, 0.2) * np.linspace(-0.5, 0.5, W) + _rough_line(W, rng)
        top = int(np.clip(line.min() * H, 0, H - 2))
        below = np.arange(top, H)[:, None] > line * H
        texture = _texture((H - top, W), palette, rng, calm=rng.random() < 0.4)
        np.copyto(canvas.pixels[top:], texture, where=below[..., None])
        canvas.topmost[top:][below] = canvas.add_node(None)
    if rng.random() < 0.5:  # out of focus
        image = Image.fromarray((canvas.pixels * 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3) * H / 480))
        canvas.pixels = np.asarray(image, dtype=np.float32) / np.float32(255)


def _rough_line(width: int, rng: Rng) -> NDArray[np.float64]:
    """Heights of a straight edge, of hills or of tree tops, as shares of the image."""
    rough, line = rng.choice([0.0, 0.03, 0.08]), np.zeros(width)
    for knots in (3, 8, 20, 60):
        heights = rng.normal(0, rough / knots**0.6, knots)
        line += np.interp(np.linspace(0, knots - 1, width), np.arange(knots), heights)
    return line


def _paint_thing(
    canvas: _Canvas, shape: Shape, size: float, palette: Field, light: NDArray[np.float64], rng: Rng
) -> None:
    H, W = canvas.size_hw
    turn = rng.normal(0, 0.25) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
    mirror = rng.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * size
    rotation[0] *= mirror
    centre = np.array([rng.uniform(-0.05, 1.05) * W, rng.uniform(0.05, 1.05) * H])
    corners = np.concatenate(shape.rings) @ rotation + centre
    margin = 0.35 * size + 3  # room for the shadow
    x0, y0 = np.maximum(np.floor(corners.min(0) - margin), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(corners.max(0) + margin), (W, H)).astype(int)
    if x1 - x0 < 4 or y1 - y0 < 4:
        return
    window = (slice(y0, y1), slice(x0, x1))
    origin = centre - (x0, y0)

    def place(rings: tuple[Ring, ...]) -> list[Ring]:
        return [ring @ rotation + origin for ring in rings]

    alpha = _fill(place(shape.rings), place(shape.holes), (y1 - y0, x1 - x0))
    if rng.random() < 0.75:
        canvas.pixels[window] *= 1 - _shadow(alpha, size, light, rng)[..., None]
    _paint_shape(canvas, window, shape, alpha, None, place, palette, light, rng)


def _paint_shape(
    canvas: _Canvas,
    window: tuple[slice, slice],
    shape: Shape,
    alpha: Field,
    parent: int | None,
    place: Callable[[tuple[Ring, ...]], list[Ring]],
    palette: Field,
    light: NDArray[np.float64],
    rng: Rng,
) -> None:
    """One node and then its parts, which never leave it."""
    inside = alpha > 0.5
    if not inside.any():
        return
    node = canvas.add_node(parent)
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    tight = (
        slice(max(0, ys[0] - 2), ys[-1] + 3),
        slice(max(0, xs[0] - 2), xs[-1] + 3),
    )
    a = alpha[tight]
    texture = _texture(a.shape, palette, rng, calm=parent is not None or rng.random() < 0.5)
    shade = _shading(a, light, shape.roundness)
    if shape.roundness == 0.0:
        shade = shade * np.float32(rng.uniform(0.65, 1.2))  # each face of a box faces elsewhere
    target = canvas.pixels[window][tight]
    target += a[..., None] * (texture * shade[..., None] - target)
    canvas.topmost[window][inside] = node
    for part in shape.parts:
        part_alpha = _fill(place(part.rings), place(part.holes), alpha.shape)
        _paint_shape(
            canvas, window, part, np.minimum(alpha, part_alpha), node, place, palette, light, rng
        )


def _fill(rings: list[Ring], holes: list[Ring], size_hw: tuple[int, ...]) -> Field:
    """Coverage in [0, 1], drawn at twice the size."""
    h, w = size_hw
    image = Image.new("L", (2 * w, 2 * h))
    draw = ImageDraw.Draw(image)
    for ring in rings:
        draw.polygon([(2 * x, 2 * y) for x, y in ring.tolist()], fill=255)
    for ring in holes:
        draw.polygon([(2 * x, 2 * y) for x, y in ring.tolist()], fill=0)
    return np.asarray(image.reduce(2), dtype=np.float32) / np.float32(255)


def _shadow(alpha: Field, size: float, light: NDArray[np.float64], rng: Rng) -> Field:
    """How much light the thing takes from what lies behind it."""
    h, w = alpha.shape
    dx, dy = (-light * size * rng.uniform(0.05, 0.25)).round().astype(int)
    moved = np.zeros_like(alpha)
    moved[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)] = alpha[
        max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)
    ]
    return _blur(moved, size * rng.uniform(0.03, 0.12) + 1) * np.float32(rng.uniform(0.2, 0.65))


def _shading(alpha: Field, light: NDArray[np.float64], roundness: float) -> Field:
    """Brightness as if the outline were inflated: rims that face the light are brighter."""
    if roundness == 0.0:
        return np.ones_like(alpha)
    height = _blur(alpha, max(2.0, 0.2 * min(alpha.shape)))
    slope_y, slope_x = np.gradient(height)
    facing = -(slope_x * light[0] + slope_y * light[1])
    strength = roundness * 0.45 / max(1e-6, float(np.abs(facing).max()))
    return np.asarray(1 + strength * facing, dtype=np.float32)


def _blur(values: Field, radius: float) -> Field:
    """Wide blurs are done small: nobody sees the difference."""
    h, w = values.shape
    factor = max(1, int(radius / 2))
    image = Image.fromarray((values * 255).astype(np.uint8))
    small = image.resize((max(2, w // factor), max(2, h // factor)), Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur(float(radius / factor)))
    large = small.resize((w, h), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float32) / np.float32(255)


def smooth_noise(size_hw: tuple[int, ...], cells: float, rng: Rng) -> Field:
    """Smooth noise of unit deviation; `cells` across the longer side."""
    h, w = size_hw
    scale = cells / max(h, w)
    rows, columns = max(2, round(h * scale) + 1), max(2, round(w * scale) + 1)
    grid = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((w, h), Image.Resampling.BICUBIC))


def _texture(size_hw: tuple[int, ...], palette: Field, rng: Rng, *, calm: bool) -> Field:
    """(h, w, 3): two or three colours of the scene, mixed by noise or by a pattern."""
    h, w = size_hw
    if h * w > 40_000:  # large textures are made small, all but their grain
        coarse = _texture((h // 2, w // 2), palette, rng, calm=calm)
        image = Image.fromarray((coarse * 255).astype(np.uint8)).resize((w, h))
        fine = rng.standard_normal((h, w, 1), dtype=np.float32) * np.float32(0.02)
        return np.clip(np.asarray(image, dtype=np.float32) / np.float32(255) + fine, 0, 1)
    first, second = palette[rng.choice(len(palette), 2, replace=False)]
    if calm:
        second = np.clip(first * rng.uniform(0.6, 1.3) + rng.normal(0, 0.04, 3), 0, 1)
    longest = max(h, w)
    octaves = 0.5 ** np.arange(3) if rng.random() < 0.5 else np.array([0.3, 0.5, 0.6])
    start = rng.uniform(1.5, 5)
    mix = sum(
        weight * smooth_noise((h, w), min(start * 4.0**i, longest / 2), rng)
        for i, weight in enumerate(octaves)
    )
    pattern = rng.choice(["noise", "stripes", "checks", "spots"], p=[0.74, 0.12, 0.04, 0.1])
    if pattern != "noise":
        mix = 0.6 * mix + 2.0 * _pattern(str(pattern), (h, w), mix, rng)
    mix = 1 / (1 + np.exp(-rng.uniform(0.6, 2.0) * mix - rng.normal(0, 0.5)))
    colour = first + mix[..., None] * (second - first)
    grain = np.float32(rng.choice([0.01, 0.03, 0.08]))
    ramp = np.linspace(-1, 1, h, dtype=np.float32)[:, None] * np.float32(rng.normal(0, 0.12))
    ramp = ramp + np.linspace(-1, 1, w, dtype=np.float32)[None] * np.float32(rng.normal(0, 0.12))
    brightness = 1 + ramp + grain * rng.standard_normal((h, w), dtype=np.float32)
    return np.asarray(np.clip(colour * brightness[..., None], 0, 1), dtype=np.float32)


def _pattern(kind: str, size_hw: tuple[int, int], warp: Field, rng: Rng) -> Field:
    """Values in [-1, 1], bent by the noise under them."""
    h, w = size_hw
    turn, cells = rng.uniform(0, np.pi), rng.uniform(3, 14)
    y, x = np.ogrid[0:h, 0:w]
    u = (x * np.cos(turn) + y * np.sin(turn)) * (2 * np.pi * cells / max(h, w)) + warp
    v = (y * np.cos(turn) - x * np.sin(turn)) * (2 * np.pi * cells / max(h, w)) + warp
    if kind == "stripes":
        values = np.sin(u)
    elif kind == "checks":
        values = np.sign(np.sin(u) * np.sin(v))
    else:
        values = np.tanh(4 * (np.sin(u) * np.sin(v) - 0.4))
    return np.asarray(values, dtype=np.float32)


def _photograph(pixels: Field, rng: Rng) -> NDArray[np.uint8]:
    """What a camera does: uneven light, soft lens, sensor noise, tone curve, JPEG."""
    H, W, _ = pixels.shape
    light = 1 + np.float32(rng.uniform(0, 0.2)) * smooth_noise((H, W), rng.uniform(1.5, 4), rng)
    gain = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    exposed = np.clip(pixels * light[..., None] * gain, 0, 1) ** np.float32(rng.uniform(0.75, 1.2))
    image = Image.fromarray((exposed * 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1) * H / 480))
    noise = rng.standard_normal((H, W, 1), dtype=np.float32) * np.float32(rng.uniform(0.5, 7))
    noisy = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    encoded = io.BytesIO()
    noisy.save(encoded, "JPEG", quality=int(rng.integers(45, 96)))
    return np.asarray(Image.open(encoded))
