"""From original pixels to the model's padded input square, and back.

Frames: `_orig` is the image as given, `_input` the image resized so that its longest side is S
and placed at the top left of an (S, S) square. Points are (x, y), sizes (height, width).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# RGB, 0-255; of every published model of this family.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ResizeLongestSide:
    """The way between one image size and the input square."""

    size_hw_orig: tuple[int, int]
    image_size: int
    """S, side of the input square."""

    @property
    def scale(self) -> float:
        """Input pixels per original pixel."""
        return self.image_size / max(self.size_hw_orig)

    @property
    def size_hw_input(self) -> tuple[int, int]:
        """Size of the resized image within the square; at least one pixel however thin it is."""
        h, w = (max(1, int(side * self.scale + 0.5)) for side in self.size_hw_orig)
        return h, w

    def apply_image(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 RGB to (3, S, S) float32, normalised, zero-padded right and bottom."""
        expected = (*self.size_hw_orig, 3)
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(
                f"image is {image.dtype} of shape {image.shape}; expected uint8 of shape {expected}"
            )
        h, w = self.size_hw_input
        resized = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR)
        return to_input_square(np.array(resized), self.image_size)

    def apply_coords(self, coords: Tensor) -> Tensor:
        """(..., 2) points of the original frame to the input frame, float32."""
        (h_orig, w_orig), (h, w) = self.size_hw_orig, self.size_hw_input
        return coords.float() * torch.tensor([w / w_orig, h / h_orig], device=coords.device)

    def apply_boxes(self, boxes: Tensor) -> Tensor:
        """(..., 4) boxes xyxy of the original frame to the input frame, float32."""
        return self.apply_coords(boxes.reshape(*boxes.shape[:-1], 2, 2)).flatten(-2)

    def invert_boxes(self, boxes: Tensor) -> Tensor:
        """(..., 4) boxes xyxy of the input frame to the original frame, float32."""
        (h_orig, w_orig), (h, w) = self.size_hw_orig, self.size_hw_input
        back = torch.tensor([w_orig / w, h_orig / h], device=boxes.device).repeat(2)
        return boxes.float() * back

    def upscale(self, low_res_masks: Tensor) -> Tensor:
        """Logits (..., S / 4, S / 4) of the input frame to (..., H, W) of the original frame.

        Two bilinear steps, as in the official code: one straight to (H, W) would sample between
        other positions and move mask edges by a fraction of a pixel.
        """
        logits = low_res_masks.reshape(-1, 1, *low_res_masks.shape[-2:])
        shape = (*low_res_masks.shape[:-2], *self.size_hw_orig)
        if len(logits) == 0:  # interpolate refuses an empty batch
            return logits.new_zeros(shape)
        square = (self.image_size, self.image_size)
        h, w = self.size_hw_input
        logits = F.interpolate(logits, square, mode="bilinear", align_corners=False)
        logits = F.interpolate(
            logits[..., :h, :w], self.size_hw_orig, mode="bilinear", align_corners=False
        )
        return logits.reshape(shape)


def to_input_square(pixels: NDArray[np.uint8], image_size: int) -> Tensor:
    """(h, w, 3) uint8 RGB of at most S a side to (3, S, S): normalised, zero right and bottom."""
    h, w, _ = pixels.shape
    colours = torch.from_numpy(pixels).permute(2, 0, 1).float()
    mean, std = (torch.tensor(s).reshape(3, 1, 1) for s in (PIXEL_MEAN, PIXEL_STD))
    return F.pad((colours - mean) / std, (0, image_size - w, 0, image_size - h))
