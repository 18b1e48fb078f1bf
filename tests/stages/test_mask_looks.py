import numpy as np
import pytest

from stages.mask_looks import MaskLooks


def test_looks_are_those_of_every_pixel_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    height, width = 24, 30
    rows = np.searchsorted((5, 7, 18), np.arange(height), side="right")
    columns = np.searchsorted((2, 11, 15, 24), np.arange(width), side="right")
    atoms = rows[:, None] * 5 + columns
    areas = np.bincount(atoms.ravel()).astype(np.float64)
    colours = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    strength = rng.random((height, width), dtype=np.float32)
    masks = rng.random((len(areas), 5)) < 0.4
    masks[:, 3], masks[:, 4] = True, False
    found = MaskLooks(atoms, areas, colours, strength).of(masks)

    rgb = colours / 255
    for number in range(4):
        mask = masks[:, number][atoms]
        within, outline, inward, outward = [], [], [], []
        for y in range(height):
            for x in range(width):
                for other in ((y, x + 1), (y + 1, x)):
                    if other[0] == height or other[1] == width or atoms[y, x] == atoms[other]:
                        continue
                    edge = max(strength[y, x], strength[other])
                    if mask[y, x] and mask[other]:
                        within.append(edge)
                    elif mask[y, x] != mask[other]:
                        outline.append(edge)
                        inner, outer = ((y, x), other) if mask[y, x] else (other, (y, x))
                        inward.append(rgb[atoms == atoms[outer]].mean(axis=0))
                        outward.append(rgb[atoms == atoms[inner]].mean(axis=0))
        around = np.mean(inward, axis=0) if inward else np.zeros(3)
        beside = np.mean(outward, axis=0) if outward else np.zeros(3)
        expected = [
            np.log(mask.sum()),
            len(within) / np.sqrt(mask.sum()),
            np.mean(outline) if outline else 0,
            np.mean(within),
            np.abs(rgb[mask].mean(axis=0) - around).mean(),
            np.abs(beside - around).mean(),
            rgb[mask].std(axis=0).mean(),
        ]
        assert found[:, number] == pytest.approx(expected, abs=1e-6)
    assert np.isfinite(found).all()  # of the empty one, too
