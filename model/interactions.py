"""The interactions a training learns from: prompt, answer, click where it is wrong, answer again.

The recipe is the paper's [App. A]; numbers it leaves out are those of SAM 2's training code.
Axes: P prompts (one per target mask), M outputs per prompt, S the side of the input square, L the
side of the grid on which losses are computed.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from model.losses import balanced_bce_loss, dice_loss, focal_loss, mask_iou
from model.prompt_encoder import PointLabel, Prompts
from model.sam import Sam
from model.self_report import SelfReport
from model.training_prompts import noisy_boxes, random_corrections, random_foreground_points


class InteractionConfig(BaseModel):
    """Defaults are the paper's; `ours` marks what it does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_corrections: int = Field(default=8, ge=0)
    """Interactions that add a point drawn from the error region, after the first prompt."""
    num_repeats: int = Field(default=2, ge=0)
    """Interactions that add no point and only refine the mask: the last one, others anywhere."""
    box_probability: float = Field(default=0.5, ge=0, le=1)
    """Of starting from a box; otherwise from one foreground point."""
    box_noise_std: float = Field(default=0.1, ge=0)
    """Fraction of the box's side."""
    box_noise_max: float = Field(default=20.0, ge=0)
    """Input pixels."""
    pixel_loss: Literal["focal", "balanced_bce"] = "focal"
    """focal is the paper's and presumes a pretrained model: from scratch it collapses to empty
    masks, and balanced_bce does not (ours)."""
    pixel_loss_weight: float = Field(default=20.0, ge=0)
    """20 for focal; about 1 suits balanced_bce."""
    dice_loss_weight: float = Field(default=1.0, ge=0)
    iou_loss_weight: float = Field(default=1.0, ge=0)
    """Of the error of predicted_iou, over all outputs, since they are ranked by it."""
    iou_loss: Literal["squared", "absolute"] = "squared"
    """squared is the paper's, absolute that of SAM 2."""
    self_report_weight: float = Field(default=0.0, ge=0)
    """Of the loss of `SelfReport`, in pretraining only (ours)."""
    masks_at_once: PositiveInt = 64
    """At most, in the decoder, about 125 MB of memory each at 1024 pixels; the others of a batch
    come after them, and the step is the same but for what is drawn (ours: the paper has up to 64
    masks a GPU in all)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the model under autocast; losses and weights stay fp32. A processor without it
    would take twenty times as long, and computes in fp32."""

    @property
    def num_interactions(self) -> int:
        return 1 + self.num_corrections + self.num_repeats

    def autocast(self, device: torch.device) -> torch.autocast:
        enabled = self.precision == "bf16" and has_bf16(device)
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def has_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are not emulated."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Targets:
    """P masks to learn, on the loss grid; none of them empty."""

    masks: Tensor
    """(P, L, L) bool."""
    valid: Tensor
    """(P, L, L) bool: where the mask's image lies in the padded square."""
    image_index: Tensor
    """(P,)"""
    scale: float
    """S / L."""
    first_points: Tensor | None = None
    """(P, 2) input frame: what is clicked first, where no box comes first; else drawn."""

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, which: Tensor) -> "Targets":
        points = None if self.first_points is None else self.first_points[which]
        image_index = self.image_index[which]
        return Targets(self.masks[which], self.valid[which], image_index, self.scale, points)


@dataclass(frozen=True)
class Answer:
    """What one interaction led to."""

    loss: Tensor
    """Scalar, with its graph: the mean over prompts."""
    losses: dict[str, float]
    """The loss and its unweighted terms."""
    low_res_masks: Tensor
    """(P, 1, S / 4, S / 4) logits of the output of highest predicted IoU, without graph."""
    masks: Tensor
    """(P, L, L) bool, of the same output."""
    miou: float
    """Mean IoU of `masks` with the targets."""


def backward_interactions(
    sam: Sam,
    config: InteractionConfig,
    embeddings: Tensor,
    targets: Targets,
    generator: torch.Generator,
    self_report: SelfReport | None = None,
) -> dict[str, float]:
    """Add the gradients of all interactions over all targets to the parameters.

    Every interaction is back-propagated at once, as far as `embeddings` when these require a
    gradient: memory holds one interaction of `masks_at_once` targets, and the gradient is that of
    the mean over all.

    Returns:
        Means over prompts and interactions of the losses; mean IoU of the answers after the first
        and after the last interaction.
    """
    metrics: defaultdict[str, float] = defaultdict(float)
    draws = torch.rand(len(targets), generator=generator, device=targets.masks.device)
    starts_from_box = draws < config.box_probability
    # Prompts with and without a box have different numbers of tokens, so they go separately.
    for from_box in (False, True):
        (of_kind,) = torch.nonzero(starts_from_box == from_box, as_tuple=True)
        for start in range(0, len(of_kind), config.masks_at_once):
            group = targets.select(of_kind[start : start + config.masks_at_once])
            share = len(group) / len(targets)
            prompts = _first_prompts(config, group, generator, from_box)
            found = _backward_group(
                sam, config, embeddings, prompts, group, generator, share, self_report
            )
            for name, value in found.items():
                metrics[name] += value * share
    return dict(metrics)


def _backward_group(
    sam: Sam,
    config: InteractionConfig,
    embeddings: Tensor,
    prompts: Prompts,
    targets: Targets,
    generator: torch.Generator,
    share: float,
    self_report: SelfReport | None,
) -> dict[str, float]:
    """All interactions over prompts of one kind, which are `share` of all prompts."""
    metrics: defaultdict[str, float] = defaultdict(float)
    # Three outputs are for what a single point may mean: whole, part or subpart.
    multimask_output = prompts.boxes is None
    mious = []
    for adds_point in [*_draw_schedule(config, generator), False]:
        answer = _answer(sam, config, embeddings, prompts, targets, multimask_output, self_report)
        loss = answer.loss * share / config.num_interactions
        loss.backward()  # type: ignore[no-untyped-call]
        for name, value in answer.losses.items():
            metrics[name] += value / config.num_interactions
        mious.append(answer.miou)
        multimask_output = False
        prompts = replace(prompts, mask_input=answer.low_res_masks)
        if adds_point:
            prompts = _with_correction(prompts, answer, targets, generator)
    return {**metrics, "miou_first": mious[0], "miou_last": mious[-1]}


def _first_prompts(
    config: InteractionConfig, targets: Targets, generator: torch.Generator, from_box: bool
) -> Prompts:
    if from_box:
        boxes = noisy_boxes(
            targets.masks,
            targets.scale,
            generator,
            noise_std=config.box_noise_std,
            max_noise=config.box_noise_max,
        )
        return Prompts(boxes=boxes)
    points = targets.first_points
    if points is None:
        points = random_foreground_points(targets.masks, targets.scale, generator)
    points = points[:, None]
    return Prompts(points, torch.full_like(points[..., 0], PointLabel.FOREGROUND).long())


def _draw_schedule(config: InteractionConfig, generator: torch.Generator) -> list[bool]:
    """For each interaction after the first, whether it adds a point."""
    if config.num_repeats == 0:
        return [True] * config.num_corrections
    schedule = [True] * config.num_corrections + [False] * (config.num_repeats - 1)
    order = torch.randperm(len(schedule), generator=generator, device=generator.device)
    return [*(schedule[i] for i in order.tolist()), False]


def _answer(
    sam: Sam,
    config: InteractionConfig,
    embeddings: Tensor,
    prompts: Prompts,
    targets: Targets,
    multimask_output: bool,
    self_report: SelfReport | None,
) -> Answer:
    with config.autocast(embeddings.device):
        prediction = sam.decode(
            embeddings,
            prompts,
            multimask_output=multimask_output,
            image_index=targets.image_index,
        )
    low_res_masks = prediction.low_res_masks.float()
    predicted_iou = prediction.predicted_iou.float()
    logits = F.interpolate(low_res_masks, targets.masks.shape[1:], mode="bilinear")
    loss, losses, iou = _judge(config, logits, predicted_iou, targets)
    if self_report is not None:
        report_loss = self_report.loss(prediction.iou_token, logits, targets.valid)
        loss = loss + config.self_report_weight * report_loss
        losses["report_loss"] = report_loss.item()
    rows = torch.arange(len(targets), device=logits.device)
    best = predicted_iou.argmax(dim=1)
    return Answer(
        loss=loss,
        losses=losses,
        low_res_masks=low_res_masks.detach()[rows, best][:, None],
        masks=logits.detach()[rows, best] > 0,
        miou=iou[rows, best].mean().item(),
    )


def _judge(
    config: InteractionConfig, logits: Tensor, predicted_iou: Tensor, targets: Targets
) -> tuple[Tensor, dict[str, float], Tensor]:
    """Mean loss over prompts, its unweighted terms, and the true IoU (P, M) of every output.

    Only the output of least mask loss is taught its mask.
    """
    pixel_loss = focal_loss if config.pixel_loss == "focal" else balanced_bce_loss
    pixel = pixel_loss(logits, targets.masks, targets.valid)
    dice = dice_loss(logits, targets.masks, targets.valid)
    iou = mask_iou(logits, targets.masks, targets.valid)
    least = (config.pixel_loss_weight * pixel + config.dice_loss_weight * dice).argmin(1, True)
    error = predicted_iou - iou
    terms = {
        "pixel_loss": pixel.gather(1, least).mean(),
        "dice_loss": dice.gather(1, least).mean(),
        "iou_loss": error.square().mean() if config.iou_loss == "squared" else error.abs().mean(),
    }
    loss = (
        config.pixel_loss_weight * terms["pixel_loss"]
        + config.dice_loss_weight * terms["dice_loss"]
        + config.iou_loss_weight * terms["iou_loss"]
    )
    losses = {name: term.item() for name, term in {"loss": loss, **terms}.items()}
    return loss, losses, iou


def _with_correction(
    prompts: Prompts, answer: Answer, targets: Targets, generator: torch.Generator
) -> Prompts:
    points, labels = random_corrections(
        answer.masks, targets.masks, targets.valid, targets.scale, generator
    )
    points, labels = points[:, None], labels[:, None]
    if prompts.point_coords is not None and prompts.point_labels is not None:
        points = torch.cat([prompts.point_coords, points], dim=1)
        labels = torch.cat([prompts.point_labels, labels], dim=1)
    return replace(prompts, point_coords=points, point_labels=labels)
