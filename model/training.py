"""Interactive training of a Sam, one batch a step; stopped and restored, it goes on bit by bit.

Axes: B images, P prompts (one per target mask), S the side of the input square, L the side of the
grid on which losses are computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from model.interactions import InteractionConfig, Targets, backward_interactions
from model.optimizer import (
    average_gradients,
    build_optimizer,
    process_rank,
    scheduled_learning_rate,
    set_drop_path,
    set_learning_rate,
)
from model.sam import Sam
from model.tiny_vit import freeze_norm_statistics


class TrainingConfig(InteractionConfig):
    """Defaults are the paper's [App. A]; `ours` marks what it does not say."""

    steps: PositiveInt = 90_000
    batch_images: PositiveInt = 256
    """Images per step, over all workers."""
    masks_per_image: PositiveInt = 64
    """At most; drawn at random where an image has more. Memory does not grow with them, see
    `masks_at_once`."""
    seed: NonNegativeInt = 0
    """In a run, other draws of the retrainings alone: they follow the run's own seed too."""
    freeze_image_encoder: bool = False
    """Train prompt encoder and decoder only, on embeddings that come with the batch."""
    max_mask_fraction: float = Field(default=0.9, gt=0, le=1)
    """Masks over this share of their image are left out."""
    loss_size: PositiveInt | None = None
    """L; None: S / 4, where the decoder answers (ours)."""

    learning_rate: PositiveFloat = 8e-4
    warmup_steps: int = Field(default=250, ge=0)
    lr_decay_steps: tuple[int, ...] = (60_000, 86_666)
    """Steps at which the learning rate is multiplied by `lr_decay_factor`."""
    lr_decay_factor: PositiveFloat = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.1, ge=0)
    layer_decay: float = Field(default=0.8, gt=0, le=1)
    """Each layer of the image encoder learns at this fraction of the rate of the one above."""
    drop_path: float = Field(default=0.4, ge=0, lt=1)
    """Probability of skipping the last block of the image encoder; earlier ones less."""
    max_grad_norm: PositiveFloat | None = None
    """None: gradients are not clipped (ours)."""


@dataclass(frozen=True)
class TrainingBatch:
    masks: Tensor
    """(P, h, w) bool, h = w: targets in the padded input frame, at any resolution."""
    image_index: Tensor
    """(P,), the image of each mask."""
    valid: Tensor
    """(B, h, w) bool, h = w, at any resolution: where the image lies in the padded square."""
    images: Tensor | None = None
    """(B, 3, S, S), normalised and padded; what an encoder that learns needs."""
    embeddings: Tensor | None = None
    """(B, C, S / 16, S / 16); what a frozen encoder needs instead."""


class Trainer:
    """Trains `sam` in place.

    What a step draws depends on the seed, its number and the worker alone, so a training restored
    by `load_state_dict` goes on exactly as it would have. Where torch.distributed is initialised,
    gradients are averaged over the masks of its workers, each of which brings its own batches.
    """

    def __init__(self, sam: Sam, config: TrainingConfig) -> None:
        self.sam = sam
        self.config = config
        self.steps_done = 0
        sam.train()
        # Those of a few images mislead, and every rank of a cluster would keep its own.
        freeze_norm_statistics(sam)
        if config.freeze_image_encoder:
            sam.image_encoder.requires_grad_(False).eval()
        set_drop_path(sam.image_encoder, config.drop_path)
        self.optimizer = build_optimizer(
            sam,
            betas=config.betas,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
        )

    def step(self, batch: TrainingBatch) -> dict[str, float]:
        """Learn from one batch.

        Returns:
            The means of `backward_interactions`, the number of masks learnt from (0: none of the
            batch was of use, and the losses are missing) and the learning rate.
        """
        config = self.config
        learning_rate = scheduled_learning_rate(
            self.steps_done,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            decay_steps=config.lr_decay_steps,
            decay_factor=config.lr_decay_factor,
        )
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad()
        metrics = self._backward(batch)
        average_gradients(self._learning_parameters(), weight=metrics["num_masks"])
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._learning_parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.steps_done += 1
        return {**metrics, "learning_rate": learning_rate}

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs; a frozen image encoder is not part of it."""
        weights = self.sam.state_dict()
        if self.config.freeze_image_encoder:
            weights = {k: v for k, v in weights.items() if not k.startswith("image_encoder.")}
        return {
            "steps_done": self.steps_done,
            "sam": weights,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sam.load_state_dict(state["sam"], strict=not self.config.freeze_image_encoder)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]

    def _backward(self, batch: TrainingBatch) -> dict[str, float]:
        """Leave the gradients of one batch in the parameters."""
        device = self.sam.device
        drawn_from = np.random.SeedSequence([self.config.seed, self.steps_done, process_rank()])
        seed = int(drawn_from.generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(seed)
        targets = self._targets(batch)
        if len(targets) == 0:
            return {"num_masks": 0.0}
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # drop path draws from the global generator
            embeddings = self._embed(batch)
        # The interactions meet a leaf, so that each can be back-propagated and forgotten by
        # itself; the encoder is passed through once, with the sum of their gradients.
        leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
        metrics = backward_interactions(self.sam, self.config, leaf, targets, generator)
        if leaf.grad is not None:
            embeddings.backward(leaf.grad)  # type: ignore[no-untyped-call]
        return {"num_masks": float(len(targets)), **metrics}

    def _embed(self, batch: TrainingBatch) -> Tensor:
        frozen = self.config.freeze_image_encoder
        given = batch.embeddings if frozen else batch.images
        if given is None:
            raise ValueError(
                f"a batch without {'embeddings' if frozen else 'images'}; expected them, because "
                f"freeze_image_encoder is {frozen}"
            )
        given = given.to(self.sam.device, torch.float32)
        if frozen:
            return given
        with self.config.autocast(given.device):
            return self.sam.encode(given)

    def _targets(self, batch: TrainingBatch) -> Targets:
        """The batch's masks on the loss grid, without those that are empty there or too large."""
        size = self.config.loss_size or self.sam.config.low_res_size
        image_index = batch.image_index.to(self.sam.device)
        valid = _resize(batch.valid.to(self.sam.device), size)[image_index]
        masks = _resize(batch.masks.to(self.sam.device), size) & valid
        fraction = masks.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        useful = (fraction > 0) & (fraction <= self.config.max_mask_fraction)
        scale = self.sam.config.image_size / size
        return Targets(masks, valid, image_index, scale).select(useful)

    def _learning_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.sam.parameters() if parameter.requires_grad]


def _resize(masks: Tensor, size: int) -> Tensor:
    """(N, h, w) bool to (N, size, size) bool: a cell is set when half of it or more is."""
    if masks.shape[-1] == size or len(masks) == 0:
        return masks.reshape(-1, size, size)
    return F.interpolate(masks[:, None].float(), (size, size), mode="area")[:, 0] >= 0.5
