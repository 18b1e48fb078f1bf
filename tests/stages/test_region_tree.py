import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from stages.region_tree import RegionTree
from stages.rle import Mask

Strength = NDArray[np.float32]


def walls() -> Strength:
    """Four rooms: a strong wall down the middle, weak ones across; the doors of walls are thin."""
    strength = np.full((40, 60), 0.02, dtype=np.float32)
    strength[20, :30] = 0.2
    strength[12, 31:] = 0.4
    strength[:, 30] = 0.9
    return strength


def rooms(tree: RegionTree, strength: float) -> NDArray[np.intp]:
    return tree.cut(strength)[tree.regions]


def masks_of(tree: RegionTree) -> set[bytes]:
    return {((first <= tree.regions) & (tree.regions < end)).tobytes() for first, end in tree.nodes}


def test_weaker_walls_fall_first() -> None:
    tree = RegionTree.of(walls())
    corners = [(2, 2), (38, 2), (2, 58), (38, 58)]
    for strength, together in ((0.1, 4), (0.3, 3), (0.6, 2), (1.0, 1)):
        cut = rooms(tree, strength)
        assert cut.max() + 1 == together
        assert len({cut[corner] for corner in corners}) == together
    left = rooms(tree, 0.6)
    assert left[2, 2] == left[38, 2] != left[2, 58] == left[38, 58]


def slow_unions(regions: NDArray[np.intp], strength: Strength) -> list[tuple[Mask, float]]:
    """All that is put together, by looking at every border of the picture anew each time."""
    labels, unions = regions.copy(), []
    while labels.max() > labels.min():
        found: dict[tuple[int, int], list[float]] = {}
        for (y, x), label in np.ndenumerate(labels):
            for beside in ((y + 1, x), (y, x + 1)):
                if beside[0] < labels.shape[0] and beside[1] < labels.shape[1]:
                    pair = tuple(sorted((int(label), int(labels[beside]))))
                    if pair[0] != pair[1]:
                        found.setdefault(pair, []).append(max(strength[y, x], strength[beside]))  # type: ignore[arg-type]
        weakest, (one, other) = min((float(np.mean(s)), pair) for pair, s in found.items())
        labels[labels == other] = one
        unions.append((labels == one, weakest))
    return unions


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_union_is_of_the_two_regions_with_the_weakest_border(seed: int) -> None:
    noise = np.random.default_rng(seed).random((40, 44), dtype=np.float32)
    strength = ndimage.gaussian_filter(noise, 2)  # borders of one pixel would be equally strong
    tree = RegionTree.of(strength)
    expected = slow_unions(tree.regions, strength)
    assert len(expected) > 8
    alone = {(tree.regions == region).tobytes() for region in range(tree.regions.max() + 1)}
    assert masks_of(tree) == alone | {mask.tobytes() for mask, _ in expected}
    assert np.sort(tree.borders) == pytest.approx(sorted(weakest for _, weakest in expected))


def test_a_coarser_tree_has_the_regions_of_a_cut_and_all_that_is_made_of_them() -> None:
    strength = np.random.default_rng(5).random((30, 40), dtype=np.float32)
    tree = RegionTree.of(strength)
    middle = float(np.median(tree.borders))
    coarse = tree.coarsened(middle)
    assert np.array_equal(coarse.regions, rooms(tree, middle))
    assert 1 < len(coarse.borders) < len(tree.borders)
    assert masks_of(coarse) <= masks_of(tree)
    assert len(coarse.nodes) == 2 * len(coarse.borders) + 1
    for strength_above in (middle, 0.7, 0.9, 2.0):
        assert np.array_equal(rooms(coarse, strength_above), rooms(tree, strength_above))


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_an_image_may_be_as_small_as_it_likes(size_hw: tuple[int, int]) -> None:
    tree = RegionTree.of(np.random.default_rng(0).random(size_hw, dtype=np.float32))
    assert tree.regions.shape == size_hw
    assert tree.nodes.max() == tree.regions.max() + 1
    assert (rooms(tree, 2.0) == 0).all()


def test_an_image_without_an_edge_is_one_region() -> None:
    tree = RegionTree.of(np.zeros((20, 30), dtype=np.float32))
    assert (tree.nodes.tolist(), len(tree.borders)) == ([[0, 1]], 0)
