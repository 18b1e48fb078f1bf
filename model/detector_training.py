"""Training of the object detector on stored image embeddings and the boxes of all masks.

Axes: B images, K slots, (h, w) cells, N boxes of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.detector import DetectorOutput, DetectorTrainingConfig, ObjectDetector
from model.sam import STRIDE

# Spread of an object over the cells around its centre: a sixth of its side, within these limits.
MIN_SIGMA, MAX_SIGMA = 0.4, 2.0
# Cells this close to a centre (1 at the centre itself) also learn the object's box.
BOX_HEAT = 0.5


@dataclass(frozen=True)
class DetectorTargets:
    """What the slots of one image should say."""

    heat: Tensor
    """(K, h, w): 1 at the centre of an object, falling to 0 away from it."""
    boxes: Tensor
    """(K, h, w, 4) xyxy, input frame: the object whose heat it is."""


class DetectorTrainer:
    """Trains `detector` in place. A step draws nothing, so a restored training goes on exactly."""

    def __init__(self, detector: ObjectDetector, config: DetectorTrainingConfig) -> None:
        self.detector = detector.train()
        self.config = config
        self.steps_done = 0
        self.optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=config.weight_decay)

    def step(self, image_embeddings: Tensor, boxes: Sequence[Tensor]) -> dict[str, float]:
        """Learn from (B, C, h, w) embeddings and for each image its (N, 4) boxes, input frame."""
        warmup = min(1.0, (self.steps_done + 1) / max(self.config.warmup_steps, 1))
        left = max(0.0, 1 - self.steps_done / self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup * left
        losses = detector_losses(self.detector, self.detector(image_embeddings), boxes)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.steps_done += 1
        return {name: loss.item() for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]


def detector_losses(
    detector: ObjectDetector, output: DetectorOutput, boxes: Sequence[Tensor]
) -> dict[str, Tensor]:
    """`score_loss` per object and `box_loss` per unit of heat, both meant to be added."""
    size_hw = (output.logits.shape[2], output.logits.shape[3])
    targets = [detector_targets(detector, image_boxes, size_hw) for image_boxes in boxes]
    heat = torch.stack([target.heat for target in targets])
    truth = torch.stack([target.boxes for target in targets])
    num_objects = (heat == 1).sum().clamp(min=1)
    weight = heat * (heat >= BOX_HEAT)
    box_loss = (1 - generalised_iou(output.boxes, truth)) * weight
    return {
        "score_loss": _score_loss(output.logits, heat).sum() / num_objects,
        "box_loss": box_loss.sum() / weight.sum().clamp(min=1),
    }


def detector_targets(
    detector: ObjectDetector, boxes: Tensor, size_hw: tuple[int, int]
) -> DetectorTargets:
    """Targets for one image; where two objects of one slot meet, the nearer centre wins."""
    h, w = size_hw
    heat = boxes.new_zeros(detector.num_slots, h, w)
    owners = boxes.new_zeros(detector.num_slots, h, w, 4)
    slots = detector.slots_of(boxes, w * STRIDE)
    for slot in range(detector.num_slots):
        mine = boxes[slots == slot]
        if len(mine) > 0:
            strongest = _heat_of(mine, size_hw).max(dim=0)
            heat[slot] = strongest.values
            owners[slot] = mine[strongest.indices]
    return DetectorTargets(heat, owners)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4) and (..., 4) boxes xyxy to (...) in [-1, 1]; below 0 the farther apart."""
    overlap = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return overlap / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    return (bottom_right - top_left).clamp(min=0).prod(dim=-1)


def _heat_of(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(N, h, w): a bell around each box's centre, as wide as the box in x and as high in y."""
    h, w = size_hw
    limit = boxes.new_tensor([w - 1, h - 1])
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).floor().clamp(min=0).minimum(limit)
    sigma = ((boxes[:, 2:] - boxes[:, :2]) / STRIDE / 6).clamp(MIN_SIGMA, MAX_SIGMA)
    columns, rows = (torch.arange(n, device=boxes.device) for n in (w, h))
    x = ((columns - centres[:, :1]) / sigma[:, :1]).square()
    y = ((rows - centres[:, 1:]) / sigma[:, 1:]).square()
    return torch.exp(-(y[:, :, None] + x[:, None, :]) / 2)


def _score_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """CenterNet's focal loss: centres are positive, the rest negative, less so near a centre."""
    probability = logits.sigmoid()
    positive = (1 - probability) ** 2 * -F.logsigmoid(logits)
    negative = (1 - heat) ** 4 * probability**2 * -F.logsigmoid(-logits)
    return torch.where(heat == 1, positive, negative)
