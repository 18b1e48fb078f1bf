"""Where the prompts of a training lie."""

import torch
from torch import Tensor

from model.training_prompts import noisy_boxes, random_corrections, random_foreground_points

SCALE = 4.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rectangles(*boxes: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), 32, 32, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_first_points_are_spread_over_their_target() -> None:
    target = rectangles((4, 8, 12, 10)).expand(500, 32, 32)
    points = random_foreground_points(target, SCALE, generator())
    cells = (points + 0.5) / SCALE
    assert set(map(tuple, cells.floor().int().tolist())) == {
        (x, y) for x in range(4, 12) for y in range(8, 10)
    }


def test_corrections_add_what_is_missing_and_remove_what_spilled() -> None:
    targets = rectangles((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10))
    predicted = rectangles((0, 0, 10, 5), (0, 0, 20, 10), (0, 0, 10, 10))
    valid = torch.ones_like(targets)
    for seed in range(20):
        points, labels = random_corrections(predicted, targets, valid, SCALE, generator(seed))
        assert labels.tolist() == [1, 0, 1]
        (_, missed_y), (spilled_x, _), (right_x, right_y) = points.tolist()
        assert 5 * SCALE <= missed_y < 10 * SCALE
        assert 10 * SCALE <= spilled_x < 20 * SCALE
        assert max(right_x, right_y) < 10 * SCALE  # nothing is wrong: confirm the target


def test_corrections_never_fall_into_the_padding() -> None:
    targets, predicted = rectangles((0, 0, 10, 10)), rectangles((0, 0, 32, 32))
    valid = rectangles((0, 0, 32, 12))
    for seed in range(20):
        points, labels = random_corrections(predicted, targets, valid, SCALE, generator(seed))
        assert points[0, 1] < 12 * SCALE
        assert labels.tolist() == [0]


def test_boxes_without_noise_are_the_extent_of_the_target() -> None:
    boxes = noisy_boxes(rectangles((3, 5, 9, 32)), SCALE, generator(), noise_std=0.0, max_noise=0)
    assert boxes.tolist() == [[12.0, 20.0, 35.0, 127.0]]


def test_box_noise_grows_with_the_side_up_to_its_limit_and_stays_in_the_square() -> None:
    boxes = noisy_boxes(
        rectangles((10, 10, 14, 14), (0, 0, 32, 32)).repeat_interleave(400, 0),
        SCALE,
        generator(),
        noise_std=0.1,
        max_noise=20.0,
    )
    moved = boxes[:400] - torch.tensor([40.0, 40.0, 55.0, 55.0])
    assert 1.2 < moved.std() < 1.8  # a tenth of 15 pixels
    assert (boxes >= 0).all()
    assert (boxes <= 127).all()
    assert (boxes[400:, 2:] >= 127 - 20).all()
