"""A one-class "object" detector: a light head on the image embedding that says where objects are.

Every cell of the embedding has one slot for each of three sizes of object, so that nested objects
with one centre can coexist. A slot says how sure it is that an object of its size has its centre
here, and the object's box.

Axes: B images, K slots, C channels, (h, w) cells of the embedding, N boxes of one image.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch import Tensor, nn

from model.atomic_folder import STAGED_PREFIX, atomic_folder
from model.checkpoint import CONFIG, WEIGHTS, load_weights, read_json, read_safetensors
from model.layers import LayerNorm2d
from model.sam import STRIDE


class DetectorConfig(BaseModel):
    """The paper says only that it has one class; everything here is ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    embed_dim: PositiveInt = 256
    """Channels of the image embedding."""
    hidden_dim: PositiveInt = 128
    dilations: tuple[PositiveInt, ...] = (1, 2, 4)
    """One 3x3 convolution each; together they see 15 cells."""
    slot_sizes: tuple[PositiveFloat, PositiveFloat] = (0.08, 0.25)
    """Where small ends and large begins: sqrt(box area) as a fraction of the input's side."""
    max_detections: PositiveInt = 300
    """Per image, best scores first."""


class DetectorTrainingConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: PositiveInt = 2000
    batch_images: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    """Rises linearly over the warm-up, then falls linearly to 0 at the last step."""
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)


@dataclass(frozen=True)
class DetectorOutput:
    """What every slot of every cell says."""

    logits: Tensor
    """(B, K, h, w), how sure the slot is."""
    boxes: Tensor
    """(B, K, h, w, 4) xyxy, input frame."""


@dataclass(frozen=True)
class Detections:
    """The best boxes of one image, best first; neighbours may show the same object."""

    boxes: Tensor
    """(N, 4) xyxy, input frame."""
    scores: Tensor
    """(N,) in [0, 1]."""


class ObjectDetector(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.num_slots = len(config.slot_sizes) + 1
        dim = config.hidden_dim
        self.stem = nn.Sequential(nn.Conv2d(config.embed_dim, dim, 1), LayerNorm2d(dim), nn.GELU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation),
                LayerNorm2d(dim),
                nn.GELU(),
            )
            for dilation in config.dilations
        )
        self.score_head = nn.Conv2d(dim, self.num_slots, 1)
        self.box_head = nn.Conv2d(dim, self.num_slots * 4, 1)
        # At first every slot is 1 % sure: otherwise the many empty ones drown the few others.
        nn.init.constant_(self.score_head.bias, math.log(0.01 / 0.99))  # type: ignore[arg-type]
        nn.init.zeros_(self.box_head.weight)
        nn.init.zeros_(self.box_head.bias)  # type: ignore[arg-type]

    def forward(self, image_embeddings: Tensor) -> DetectorOutput:
        """(B, C, h, w) as `Sam.encode` makes them, h = w."""
        x = self.stem(image_embeddings)
        for block in self.blocks:
            x = x + block(x)
        offsets = self.box_head(x).unflatten(1, (self.num_slots, 4)).movedim(2, -1)
        return DetectorOutput(self.score_head(x).float(), self._boxes(offsets.float()))

    def predict(self, image_embeddings: Tensor) -> list[Detections]:
        """The best `max_detections` slots of each image, not suppressed by one another."""
        output = self(image_embeddings)
        scores = output.logits.sigmoid().flatten(1)
        best = scores.topk(min(self.config.max_detections, scores.shape[1]), dim=1)
        boxes = output.boxes.flatten(1, 3).clamp(0, image_embeddings.shape[-1] * STRIDE)
        return [
            Detections(boxes[image, best.indices[image]], best.values[image])
            for image in range(len(image_embeddings))
        ]

    def slots_of(self, boxes: Tensor, side: float) -> Tensor:
        """(N,) the slot for boxes of this size, in an input square of this side."""
        bounds = torch.tensor(self.config.slot_sizes, device=boxes.device) * side
        area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
        return torch.bucketize(area.sqrt(), bounds)

    def _boxes(self, offsets: Tensor) -> Tensor:
        """(B, K, h, w, 4) centre offsets in cells and log sizes to boxes xyxy in the input frame.

        A slot's sizes are relative to a typical one of its range.
        """
        h, w = offsets.shape[2:4]
        side = w * STRIDE
        small, large = self.config.slot_sizes
        typical = offsets.new_tensor([small / 2, math.sqrt(small * large), math.sqrt(large)]) * side
        rows, columns = (torch.arange(n, device=offsets.device) for n in (h, w))
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        centre = (cells + 0.5 + offsets[..., :2]) * STRIDE
        # The clamp keeps exp finite; no box is 400 times larger than is typical of its slot.
        half = typical[:, None, None, None] * offsets[..., 2:].clamp(-6, 6).exp() / 2
        return torch.cat([centre - half, centre + half], dim=-1)


def save_detector(detector: ObjectDetector, directory: Path) -> None:
    """Write a new folder, whole or not at all; an existing one is refused."""
    with atomic_folder(directory) as staged:
        save_file(detector.state_dict(), staged / WEIGHTS)
        (staged / CONFIG).write_text(detector.config.model_dump_json(indent=2) + "\n")


def load_detector(directory: str | Path, device: str | torch.device = "cpu") -> ObjectDetector:
    """The detector of a folder that `save_detector` wrote, in eval mode."""
    directory = Path(directory)
    if not (directory / CONFIG).is_file() or directory.name.startswith(STAGED_PREFIX):
        raise ValueError(f"no detector at {directory}; expected a folder with {CONFIG}")
    detector = ObjectDetector(read_json(directory / CONFIG, DetectorConfig))
    load_weights(detector, read_safetensors(directory / WEIGHTS), directory)
    return detector.to(device).eval()
