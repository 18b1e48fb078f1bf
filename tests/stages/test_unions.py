import numpy as np
import pytest

from stages.prompts import mask_iou
from stages.region_tree import RegionTree
from stages.unions import MOST_AROUND, Around, Distances, Unions, depth_looks, greatest_depth

QUARTERS = np.zeros((20, 40), dtype=np.intp)
QUARTERS[:, 20:] = 1
QUARTERS[10:, 20:] = 2
QUARTERS[10:, 30:] = 3


def quarters() -> Unions:
    """Four regions of a frame of 20 x 40: a left half, and a right one in three parts. Atoms are
    those regions, the first in two."""
    nodes = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [2, 4], [1, 4], [0, 4]])
    tree = RegionTree(QUARTERS, nodes, np.array([0.9, 0.6, 0.2]))
    return Unions(tree, np.array([0, 0, 1, 2, 3]), np.array([150.0, 250.0, 200.0, 100.0, 100.0]))


def around_in(unions: Unions, place_xy: tuple[int, int]) -> Around:
    """Of `quarters`."""
    atoms = QUARTERS + 1
    atoms[:, :7] = 0
    atoms[:10, 7] = 0
    x, y = place_xy
    return unions.around(int(atoms[y, x]), Distances.of(place_xy, atoms))


def test_a_place_is_in_all_unions_of_its_region_the_largest_first() -> None:
    unions = quarters()
    around = around_in(unions, (35, 15))
    assert unions.runs[around.which].tolist() == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert around.areas.tolist() == [800, 400, 200, 100]
    outward, within = around.looks[:, 3], around.looks[:, 4]
    assert outward.tolist() == [1, 0.9, 0.6, 0.2]
    assert within.tolist() == [0.9, 0.6, 0.2, 0]
    assert around.looks[:, 5].tolist() == pytest.approx((outward - within).tolist())
    np.testing.assert_allclose(around.looks[:, 2], np.log([1, 1 / 2, 1 / 4, 1 / 8]))


def test_depth_is_the_way_to_what_is_outside_and_the_frame_is_outside() -> None:
    unions = quarters()
    assert unions.depths.tolist() == [10, 5, 5, 5, 5, 10, 10]
    around = around_in(unions, (30, 14))  # at the right half's lower middle
    depth = np.array([6, 6, 5, 1])
    deepest = np.array([10, 10, 5, 5])
    np.testing.assert_allclose(around.looks[:, 0], depth / deepest)
    np.testing.assert_allclose(around.looks[:, 7], deepest - depth)
    np.testing.assert_allclose(np.exp(around.looks[:, 1]), deepest)


def test_masks_are_compared_with_every_union() -> None:
    unions = quarters()
    masks = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], dtype=bool)
    ious = unions.ious(masks)
    areas = np.array([150, 250, 200, 100, 100])
    each = unions.masks(np.arange(len(unions.runs)))
    for union in range(len(unions.runs)):
        for mask in range(2):
            one, other = (np.repeat(atoms, areas) for atoms in (each[:, union], masks[:, mask]))
            assert ious[union, mask] == pytest.approx(mask_iou(one, other))
    assert ious.max(axis=0).tolist() == [1, 0.75]


def test_of_more_unions_than_are_looked_at_the_smallest_are_left_out() -> None:
    number = MOST_AROUND + 5
    regions = np.tile(np.arange(number), (3, 1))
    nodes = np.array([[0, end] for end in range(1, number + 1)])
    tree = RegionTree(regions, nodes, np.linspace(0.1, 0.9, number - 1))
    unions = Unions(tree, np.arange(number), np.full(number, 3.0))
    around = unions.around(0, Distances.of((0, 1), regions))
    assert around.areas.tolist() == [3.0 * n for n in range(number, number - MOST_AROUND, -1)]
    assert np.isfinite(around.looks).all()


def test_the_only_region_of_a_plain_image_is_a_union() -> None:
    unions = Unions(
        RegionTree(np.zeros((1, 1), dtype=np.intp), np.array([[0, 1]]), np.zeros(0)),
        np.array([0]),
        np.array([1.0]),
    )
    around = unions.around(0, Distances.of((0, 0), np.zeros((1, 1), dtype=np.intp)))
    assert around.areas.tolist() == [1]
    assert around.looks[0].tolist() == [1, 0, 0, 1, 0, 1, 1, 0]


def test_how_deep_a_place_lies_in_masks_and_how_far_from_their_middle() -> None:
    """Columns of five pixels, one of them and three side by side, and all."""
    atoms = np.tile(np.arange(8).repeat(5), (21, 1))
    masks = np.zeros((8, 4), dtype=bool)
    masks[3, 0] = masks[2:5, 1] = masks[:, 2] = True
    distances = Distances.of((17, 10), atoms)
    depths = distances.depths(masks)
    assert depths.tolist() == [3, 8, 11, 0]
    greatest = np.array([greatest_depth(mask[atoms]) for mask in masks.T])
    assert greatest.tolist() == [3, 8, 11, 0]
    share, log_deepest, missed = depth_looks(np.array([2.0, 3, 0, 0]), greatest)
    assert share.tolist() == pytest.approx([2 / 3, 3 / 8, 0, 0])
    assert np.exp(log_deepest).tolist() == pytest.approx([3, 8, 11, 1])
    assert missed.tolist() == [1, 5, 10, 1]
