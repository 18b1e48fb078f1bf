"""Teach an image encoder from nothing: pixel embeddings in which a click finds its own region.

SAM's recipe needs an encoder that already sees; started from random weights its focal loss only
learns to answer with background. So the encoder is first trained without a decoder. Its embedding
is upscaled to stride 4 as SAM's mask decoder would do it, and every pixel gets one point in each of
`num_levels` small spaces: for whole, part and subpart. Pixel q belongs to a click on p, at level k,
by the logit `bias_k - |e_k(p) - e_k(q)|**2`. One encoded image so teaches dozens of masks for the
price of one matrix product. The upscaling layers become the decoder's own afterwards.
"""

# Axes: B images, P clicks, K clicks of one image, L levels, D embedding, (h, w) stride 4.

import copy
import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from model.layers import LayerNorm2d
from model.losses import embedding_loss, keep_layout
from model.optimizer import average_gradients
from model.tiny_vit import TinyViT

Model = TypeVar("Model", bound=nn.Module)

ALL_LEVELS_WEIGHT = 0.05
"""Share of the mean over the levels in the loss, so that no level dies; the rest is the least."""


class AveragedConfig(BaseModel):
    """What every training with `AveragedTraining` has to say."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = 3000
    learning_rate: float = 1e-3
    """Peak; a linear warm-up leads to it, half a cosine from it to its end."""
    final_share: float = 0.0
    """Of the peak, where the cosine ends; above zero where another phase follows."""
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998


class PretrainingConfig(AveragedConfig):
    num_levels: int = 3
    level_dim: int = 16
    pyramid_dim: int = 64


@dataclass(frozen=True)
class ClickBatch:
    """Images with K clicks each, and the mask that each click means."""

    images: Tensor
    """(B, 3, S, S) normalised and padded."""
    clicks: Tensor
    """(B, K, 2) integer (x, y) at stride 4."""
    masks: Tensor
    """(B, K, S/4, S/4) bool."""
    valid: Tensor
    """(B, S/4, S/4) bool; False on padding."""


class PixelEmbedder(nn.Module):
    """An image encoder with two heads that place every pixel in the spaces of the levels.

    The pyramid head sees all stages: with it colours and edges teach the early stages quickly. The
    neck's head sees what SAM's decoder will see, so that the same regions can be read from there.
    """

    def __init__(self, encoder: TinyViT, config: PretrainingConfig, embed_dim: int = 256) -> None:
        super().__init__()
        self.num_levels = config.num_levels
        out_dim = config.num_levels * config.level_dim
        self.image_encoder = encoder
        self.laterals = nn.ModuleList(
            nn.Conv2d(dim, config.pyramid_dim, 1) for dim in encoder.embed_dims
        )
        self.pyramid = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(config.pyramid_dim, config.pyramid_dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.pyramid_dim, out_dim, 1),
        )
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(embed_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim // 4, embed_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.projection = nn.Conv2d(embed_dim // 8, out_dim, 1)
        # Regions are compact: where a pixel lies says much about what it can belong to.
        self.position = nn.Linear(2, out_dim, bias=False)
        self.bias = nn.Parameter(torch.ones(config.num_levels))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> embeddings (B, C, S/16, S/16), pixels (B, L, D, h, w) by either head."""
        stages = self.image_encoder.stages(images)
        embeddings = self.image_encoder.neck(stages[-1])
        merged = self.laterals[3](stages[3]) + self.laterals[2](stages[2])
        for level in (1, 0):
            merged = F.interpolate(merged, scale_factor=2.0, mode="bilinear")
            merged = merged + self.laterals[level](stages[level])
        from_neck = self.projection(self.upscaling(embeddings))
        return embeddings, self._place(self.pyramid(merged)), self._place(from_neck)

    def _place(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2:]
        xy = torch.stack(
            torch.meshgrid(torch.linspace(-1, 1, w), torch.linspace(-1, 1, h), indexing="xy"), -1
        )
        placed: Tensor = pixels.float() + self.position(xy).float().permute(2, 0, 1)
        keep_layout(placed)
        return placed.reshape(len(placed), self.num_levels, -1, h, w)

    def click_logits(self, pixels: Tensor, clicks: Tensor) -> Tensor:
        """(B, L, D, h, w) and (B, K, 2) -> (B, L, K, h, w)."""
        B, L, D, h, w = pixels.shape
        flat = pixels.flatten(3)
        index = (clicks[..., 1] * w + clicks[..., 0])[:, None, None].expand(B, L, D, -1)
        at_clicks = flat.gather(3, index).transpose(2, 3)
        # bias - |p - q|^2 as one product: (2p, bias - |p|^2, -1) with (q, 1, |q|^2).
        constant = self.bias[:, None, None] - at_clicks.square().sum(3, keepdim=True)
        left = torch.cat([2 * at_clicks, constant, constant.new_full(constant.shape, -1)], dim=3)
        square = flat.square().sum(2, keepdim=True)
        right = torch.cat([flat, torch.ones_like(square), square], dim=2)
        logits: Tensor = left @ right
        return logits.reshape(B, L, -1, h, w)

    def click_loss(self, pixels: Tensor, batch: ClickBatch) -> tuple[Tensor, float]:
        """Loss of the best level of every click, and that level's mean IoU."""
        logits = self.click_logits(pixels, batch.clicks)
        valid = batch.valid[:, None]
        inside = (batch.masks & valid).flatten(0, 1).flatten(1).to(logits.dtype)
        outside = (~batch.masks & valid).flatten(0, 1).flatten(1).to(logits.dtype)
        found = [
            embedding_loss(level.flatten(0, 1).flatten(1), inside, outside)
            for level in logits.unbind(1)
        ]
        losses = torch.stack([loss for loss, _ in found], dim=1)
        ious = torch.stack([iou for _, iou in found], dim=1)
        least, level = losses.min(dim=1)
        iou = ious.gather(1, level[:, None]).mean().item()
        return torch.lerp(least.mean(), losses.mean(), ALL_LEVELS_WEIGHT), iou


class AveragedTraining(Generic[Model]):
    """Optimiser, schedule and moving average of a model's weights, all of it restorable."""

    def __init__(self, model: Model, config: AveragedConfig) -> None:
        self.recipe = config
        self.model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.step_count = 0
        learned = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learned if p.dim() > 1]},
            {"params": [p for p in learned if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)

    def descend(self) -> dict[str, float]:
        """One step of the optimiser along the gradients that are there, which it clears.

        In a process group all take the same step, along the mean of their gradients.
        """
        recipe = self.recipe
        rate = recipe.learning_rate * schedule(
            self.step_count,
            steps=recipe.steps,
            warmup_steps=recipe.warmup_steps,
            final_share=recipe.final_share,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        average_gradients([p for p in self.model.parameters() if p.requires_grad])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        # Early weights are worthless, so the average forgets faster at first.
        decay = min(recipe.ema_decay, self.step_count / (self.step_count + 10))
        update_average(self.averaged, self.model, decay)
        return {"grad_norm": norm.item(), "lr": rate}

    def state_dict(self) -> dict[str, Any]:
        return {
            "step_count": self.step_count,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_count = state["step_count"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])


class Pretrainer(AveragedTraining[PixelEmbedder]):
    """Trains an encoder by the pixels that belong together."""

    def step(self, batch: ClickBatch, generator: torch.Generator) -> dict[str, float]:
        """`generator` is not needed: nothing here is drawn."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            _, by_pyramid, by_neck = self.model(images)
        pyramid_loss, pyramid_iou = self.model.click_loss(by_pyramid, batch)
        neck_loss, neck_iou = self.model.click_loss(by_neck, batch)
        loss = pyramid_loss + neck_loss
        loss.backward()
        return {
            "loss": loss.item(),
            "pyramid_iou": pyramid_iou,
            "neck_iou": neck_iou,
            **self.descend(),
        }


@torch.no_grad()
def update_average(averaged: nn.Module, current: nn.Module, decay: float) -> None:
    """Move an average of weights, and of the norms' statistics, towards the current ones."""
    for tensors in ("parameters", "buffers"):
        pairs = zip(getattr(averaged, tensors)(), getattr(current, tensors)(), strict=True)
        for mean, value in pairs:
            if value.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def schedule(step: int, *, steps: int, warmup_steps: int, final_share: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))
