"""The way from original pixels to the input square and back."""

import numpy as np
import pytest
import torch

from model.sam import SamConfig
from model.transforms import ResizeLongestSide


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((480, 640), (768, 1024)),
        ((640, 480), (1024, 768)),
        ((1, 1), (1024, 1024)),
        ((200, 20000), (10, 1024)),
        ((20000, 1), (1024, 1)),
        ((333, 500), (682, 1024)),
    ],
)
def test_longest_side_becomes_the_input_size(
    size_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert ResizeLongestSide(size_hw, 1024).size_hw_input == expected


def test_image_is_normalised_at_the_top_left_and_zero_elsewhere() -> None:
    image = np.full((30, 60, 3), 200, np.uint8)
    square = SamConfig.preset("vit_b").transform((30, 60)).apply_image(image)
    assert square.shape == (3, 1024, 1024)
    assert square.dtype == torch.float32
    torch.testing.assert_close(square[0, 0, 0].item(), (200 - 123.675) / 58.395)
    assert (square[:, :512] != 0).all()
    assert (square[:, 512:] == 0).all()


def test_an_image_of_another_size_or_type_is_refused() -> None:
    transform = ResizeLongestSide((30, 60), 64)
    with pytest.raises(ValueError, match=r"shape \(60, 30, 3\); expected uint8"):
        transform.apply_image(np.zeros((60, 30, 3), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        transform.apply_image(np.zeros((30, 60, 3)))  # type: ignore[arg-type]


def test_boxes_and_points_scale_with_the_image_and_come_back() -> None:
    transform = ResizeLongestSide((50, 100), 1024)
    boxes = torch.tensor([[0.0, 0.0, 100.0, 50.0], [10.0, 5.0, 20.0, 25.0]])
    moved = transform.apply_boxes(boxes)
    torch.testing.assert_close(moved[0], torch.tensor([0.0, 0.0, 1024.0, 512.0]))
    torch.testing.assert_close(transform.apply_coords(boxes[:, 2:]), moved[:, 2:])
    torch.testing.assert_close(transform.invert_boxes(moved), boxes)


@pytest.mark.parametrize("size_hw", [(40, 100), (100, 40), (1, 1), (1, 300)])
def test_logits_return_to_the_original_frame_where_they_were(size_hw: tuple[int, int]) -> None:
    transform = ResizeLongestSide(size_hw, 128)
    logits = torch.arange(32.0).expand(2, 3, 32, 32)  # value = column in the quarter frame
    upscaled = transform.upscale(logits)
    assert upscaled.shape == (2, 3, *size_hw)
    h, w = size_hw
    columns = (torch.arange(w) + 0.5) * transform.size_hw_input[1] / w / 4 - 0.5
    if w > 30:
        torch.testing.assert_close(upscaled[0, 0, h // 2, 4:-4], columns[4:-4], atol=0.1, rtol=0)


def test_no_logits_upscale_to_no_logits() -> None:
    assert ResizeLongestSide((40, 100), 128).upscale(torch.zeros(0, 3, 32, 32)).shape == (
        0,
        3,
        40,
        100,
    )
