"""The prompts a training gives: a first point or box, then clicks where the last answer was wrong.

Axes: P prompts, L the side of the grid on which masks are compared; a cell of the grid covers
S / L input pixels. Everything drawn comes from the generator that is passed in.
"""

import torch
from torch import Tensor

from model.prompt_encoder import PointLabel


def random_foreground_points(targets: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """(P, 2) points in the input frame, uniform within each of the (P, L, L) targets.

    Args:
        targets: none of them empty.
        scale: S / L.
    """
    return _to_input(_random_cells(targets, generator), scale)


def random_corrections(
    predicted: Tensor, targets: Tensor, valid: Tensor, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One click per prompt, uniform within the error region of its predicted mask.

    Where nothing is wrong there is nothing to correct: the click confirms the target.

    Returns:
        (P, 2) points in the input frame; (P,) labels, foreground where the target was missed and
        background where the prediction spilled over.
    """
    errors = (predicted ^ targets) & valid
    wrong = errors.flatten(1).any(dim=1)[:, None, None]
    cells = _random_cells(torch.where(wrong, errors, targets), generator)
    missed = targets[torch.arange(len(targets), device=targets.device), cells[:, 1], cells[:, 0]]
    labels = torch.where(missed, PointLabel.FOREGROUND, PointLabel.BACKGROUND)
    return _to_input(cells, scale), labels


def noisy_boxes(
    targets: Tensor,
    scale: float,
    generator: torch.Generator,
    *,
    noise_std: float,
    max_noise: float,
) -> Tensor:
    """(P, 4) boxes xyxy in the input frame around the targets, each side moved at random.

    Args:
        noise_std: standard deviation, as a fraction of the box's width or height.
        max_noise: input pixels.
    """
    boxes = torch.stack(
        [*_extent(targets.any(dim=1), scale), *_extent(targets.any(dim=2), scale)], dim=1
    )[:, [0, 2, 1, 3]]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device) * noise_std * sides
    image_size = targets.shape[-1] * scale
    return (boxes + noise.clamp(-max_noise, max_noise)).clamp(0, image_size - 1)


def _random_cells(regions: Tensor, generator: torch.Generator) -> Tensor:
    """(P, 2) cells (x, y), uniform within each of the (P, L, L) regions."""
    flat = torch.multinomial(regions.flatten(1).float(), 1, generator=generator)[:, 0]
    side = regions.shape[-1]
    return torch.stack([flat % side, flat // side], dim=1)


def _to_input(cells: Tensor, scale: float) -> Tensor:
    """Centres of cells as input pixel coordinates, to which the prompt encoder adds a half."""
    return (cells + 0.5) * scale - 0.5


def _extent(occupied: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """First and last input pixel of the occupied cells of each (P, L) row."""
    first = occupied.float().argmax(dim=1)
    last = occupied.shape[1] - 1 - occupied.flip(1).float().argmax(dim=1)
    return first * scale, (last + 1) * scale - 1
