"""The things of drawn scenes: trees of shapes, in which every node is a region of its own.

A bottle has a label, a creature has a head and the head has eyes. Coordinates are (x, y) in units
of the thing's half size, y down, the centre at (0, 0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""(n, 2) corners of a closed outline."""
Rng = np.random.Generator


@dataclass(frozen=True)
class Shape:
    """One region and its parts, which never leave it."""

    rings: tuple[Ring, ...]
    """Filled, in turn; those of `holes` are cut out again."""
    holes: tuple[Ring, ...] = ()
    parts: tuple["Shape", ...] = ()
    roundness: float = 1.0
    """How strongly shading follows the outline: 0 is flat."""


def _ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> Ring:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    return np.stack(
        [cx + x * np.cos(turn) - y * np.sin(turn), cy + x * np.sin(turn) + y * np.cos(turn)], 1
    )


def _capsule(x0: float, y0: float, x1: float, y1: float, r0: float, r1: float) -> Ring:
    """A limb: two discs and what lies between them."""
    along = np.arctan2(y1 - y0, x1 - x0)
    start = along + np.linspace(np.pi / 2, 3 * np.pi / 2, 10)
    end = along + np.linspace(-np.pi / 2, np.pi / 2, 10)
    return np.concatenate(
        [
            np.stack([x0 + r0 * np.cos(start), y0 + r0 * np.sin(start)], 1),
            np.stack([x1 + r1 * np.cos(end), y1 + r1 * np.sin(end)], 1),
        ]
    )


def _blob_ring(rng: Rng, wobble: float, radius: float = 1.0) -> Ring:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    r = np.ones_like(t)
    for wave in range(2, 9):
        r += wobble / wave * rng.normal() * np.cos(wave * t + rng.uniform(0, 2 * np.pi))
    r = radius * np.clip(r, 0.25, 1.6)
    return np.stack([r * np.cos(t), r * np.sin(t) * rng.uniform(0.5, 1.0)], 1)


def _quad(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)


def _blob(rng: Rng) -> Shape:
    """A stone, a fruit, a bush; with spots or a bite of another stuff."""
    parts = []
    for _ in range(int(rng.integers(0, 4))):
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        ring = _blob_ring(rng, 0.5, rng.uniform(0.1, 0.4)) + np.array([cx, cy])
        parts.append(Shape((ring,), roundness=rng.uniform(0, 0.5)))
    return Shape((_blob_ring(rng, rng.choice([0.1, 0.4, 0.9])),), parts=tuple(parts))


def _bottle(rng: Rng) -> Shape:
    """Anything turned on a lathe: a profile mirrored, with a cap and a label."""
    y = np.linspace(-1, 1, 24)
    profile = 0.25 + 0.2 * np.cumsum(rng.normal(0, 0.25, 24)) / 3
    profile = np.clip(np.convolve(profile, np.ones(5) / 5, "same") + 0.1, 0.08, 0.6)
    ring = np.concatenate([np.stack([profile, y], 1), np.stack([-profile[::-1], y[::-1]], 1)])
    parts = []
    if rng.random() < 0.7:
        parts.append(Shape((_quad(-1, -1.1, 1, rng.uniform(-0.9, -0.6)),), roundness=0.5))
    if rng.random() < 0.7:
        top = rng.uniform(-0.4, 0.2)
        mark = Shape((_ellipse(0, top + 0.2, 0.12, 0.12),), roundness=0.0)
        label = _quad(-1, top, 1, top + rng.uniform(0.3, 0.7))
        parts.append(Shape((label,), roundness=0.6, parts=(mark,) if rng.random() < 0.5 else ()))
    return Shape((ring,), parts=tuple(parts))


def _creature(rng: Rng) -> Shape:
    """Body, head with eyes, legs, a tail: limbs overlap the body and each other."""
    length, lean = rng.uniform(0.35, 0.6), rng.uniform(-0.2, 0.2)
    body = _capsule(-length, lean, length, -lean, rng.uniform(0.2, 0.35), rng.uniform(0.18, 0.3))
    hx, hy, hr = length + rng.uniform(0.1, 0.3), -rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.28)
    rings, legs = [body], []
    for x in np.linspace(-length, length, int(rng.integers(2, 5))):
        foot = x + rng.uniform(-0.25, 0.25)
        legs.append(_capsule(x, 0.1, foot, rng.uniform(0.7, 1.0), 0.11, rng.uniform(0.04, 0.08)))
    tail = _capsule(-length, lean, -1.0, rng.uniform(-0.6, 0.4), 0.08, 0.03)
    neck = _capsule(length * 0.8, -lean, hx, hy, 0.16, 0.13)
    head = _ellipse(hx, hy, hr * rng.uniform(1, 1.5), hr, rng.uniform(-0.5, 0.5))
    rings += [*legs, tail, neck, head]
    eye = Shape((_ellipse(hx + hr * 0.3, hy - hr * 0.2, hr * 0.22, hr * 0.22),), roundness=0.0)
    parts = [Shape((head,), parts=(eye,))]
    parts += [Shape((leg,)) for leg in legs if rng.random() < 0.6]
    if rng.random() < 0.5:
        parts.append(Shape((_quad(-0.25, -0.6, 0.2, 0.28),), roundness=0.4))  # a coat
    return Shape(tuple(rings), parts=tuple(parts))


def _box(rng: Rng) -> Shape:
    """Two sides and a top, each a part; sometimes a door or windows."""
    w, h, d = rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.45)
    skew = rng.uniform(0.1, 0.4)
    front = np.array([[-w, -h + d], [w - d, -h + d], [w - d, h], [-w, h]])
    side = np.array([[w - d, -h + d], [w, -h + d - skew], [w, h - skew], [w - d, h]])
    top = np.array([[-w, -h + d], [-w + d, -h + d - skew], [w, -h + d - skew], [w - d, -h + d]])
    parts_front: list[Shape] = []
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    if rng.random() < 0.6:
        xs = np.linspace(-w, w - d, columns + 1)
        ys = np.linspace(-h + d, h, rows + 1)
        mx, my = rng.uniform(0.1, 0.35) * (xs[1] - xs[0]), rng.uniform(0.1, 0.35) * (ys[1] - ys[0])
        for i in range(columns):
            for j in range(rows):
                pane = _quad(xs[i] + mx, ys[j] + my, xs[i + 1] - mx, ys[j + 1] - my)
                parts_front.append(Shape((pane,), roundness=0.0))
    return Shape(
        (front, side, top),
        parts=(
            Shape((front,), parts=tuple(parts_front), roundness=0.0),
            Shape((side,), roundness=0.0),
            Shape((top,), roundness=0.0),
        ),
        roundness=0.0,
    )


def _ring_thing(rng: Rng) -> Shape:
    """A wheel, a plate or a frame: with a hole, or with another disc where it would be."""
    squeeze, inner = rng.uniform(0.35, 1.0), rng.uniform(0.35, 0.85)
    outer, hole = _ellipse(0, 0, 1, squeeze), _ellipse(0, 0, inner, inner * squeeze)
    if rng.random() < 0.5:
        return Shape((outer,), holes=(hole,), roundness=0.5)
    centre = Shape((_ellipse(0, 0, inner * 0.4, inner * 0.4 * squeeze),), roundness=0.3)
    return Shape((outer,), parts=(Shape((hole,), parts=(centre,), roundness=0.4),), roundness=0.5)


def _plant(rng: Rng) -> Shape:
    """Stems with leaves: thin, branching, full of gaps; in a pot or not."""
    stems, leaves = [], []
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.uniform(-0.8, 0.8), rng.uniform(-1, -0.2)
        stems.append(_capsule(0, 0.7, x, y, 0.05, 0.025))
        for along in rng.uniform(0.4, 1.0, int(rng.integers(1, 4))):
            turn = rng.uniform(0, 2 * np.pi)
            size = rng.uniform(0.1, 0.28)
            cx, cy = x * along + size * np.cos(turn), 0.7 + (y - 0.7) * along + size * np.sin(turn)
            leaves.append(_ellipse(cx, cy, size, size * rng.uniform(0.3, 0.6), turn))
    pot = np.array([[-0.35, 0.55], [0.35, 0.55], [0.25, 1.0], [-0.25, 1.0]])
    parts = [Shape((leaf,), roundness=0.4) for leaf in leaves[:4]]
    with_pot = rng.random() < 0.6
    rings = (*stems, *leaves, pot) if with_pot else (*stems, *leaves)
    return Shape(rings, parts=(*parts, Shape((pot,))) if with_pot else tuple(parts))


def _stick(rng: Rng) -> Shape:
    """A pole, a rod, a rope."""
    bend = rng.uniform(-0.5, 0.5)
    a = _capsule(-1, 0, 0, bend, rng.uniform(0.03, 0.12), 0.06)
    b = _capsule(0, bend, 1, 0, 0.06, rng.uniform(0.03, 0.1))
    return Shape((a, b))


def _banded(rng: Rng) -> Shape:
    """A cloth or a ball with bands: every band is a part."""
    outline = _blob_ring(rng, rng.choice([0.05, 0.3]))
    cuts = np.sort(rng.uniform(-0.9, 0.9, int(rng.integers(2, 5))))
    bands = [Shape((_quad(-2, a, 2, b),)) for a, b in pairwise(cuts)]
    return Shape((outline,), parts=tuple(bands))


THINGS: tuple[Callable[[Rng], Shape], ...] = (
    _blob, _blob, _bottle, _creature, _creature, _box, _ring_thing, _plant, _stick, _banded,
)  # fmt: skip
