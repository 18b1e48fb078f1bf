"""The second half of pretraining: SAM's prompt encoder and decoder on top of a pretrained encoder.

Everything learns together. Pixel embeddings (model/pretraining.py) go on teaching the encoder,
because they teach many masks for the price of one image; the decoder learns from a few interactions
of the paper's kind (model/interactions.py). The paper's own training, for the rounds after a first
checkpoint, is model/training.py.
"""

# Axes: B images, K clicks of one image.

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.interactions import InteractionConfig, Targets, backward_interactions
from model.pretraining import (
    AveragedConfig,
    AveragedTraining,
    ClickBatch,
    PixelEmbedder,
    PretrainingConfig,
)
from model.sam import Sam
from model.tiny_vit import TinyViT


class JointConfig(AveragedConfig):
    prompts_per_image: int = 8
    """Of the batch's clicks on an image, so many masks are asked of the decoder too."""
    frozen_steps: int = 0
    """Steps at the beginning in which the decoder does not yet teach the encoder."""
    embedding_weight: float = 0.5
    """Of the pixel embeddings' loss, beside the decoder's."""
    interactions: InteractionConfig


class JointModel(nn.Module):
    """SAM, and a pixel embedder that shares its image encoder."""

    def __init__(self, sam: Sam, pretraining: PretrainingConfig) -> None:
        super().__init__()
        encoder = sam.image_encoder
        if not isinstance(encoder, TinyViT):
            raise ValueError(
                f"the image encoder is a {type(encoder).__name__}; expected a TinyViT, whose "
                "stages the pixel embeddings are built on"
            )
        self.sam = sam
        self.embedder = PixelEmbedder(encoder, pretraining, sam.config.embed_dim)

    def start_from(self, embedder: dict[str, Tensor]) -> None:
        """Take over a pretrained embedder's state; the decoder begins with its upscaling layers."""
        self.embedder.load_state_dict(embedder)
        upscaling = self.embedder.upscaling.state_dict()
        self.sam.mask_decoder.output_upscaling.load_state_dict(upscaling)


class JointTrainer(AveragedTraining[JointModel]):
    def __init__(self, model: JointModel, config: JointConfig) -> None:
        super().__init__(model, config)
        self.config = config

    def step(self, batch: ClickBatch, generator: torch.Generator) -> dict[str, float]:
        config = self.config
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, by_pyramid, by_neck = self.model.embedder(images)
        pyramid_loss, _ = self.model.embedder.click_loss(by_pyramid, batch)
        neck_loss, neck_iou = self.model.embedder.click_loss(by_neck, batch)
        loss = config.embedding_weight * (pyramid_loss + neck_loss)
        # The interactions end at this leaf, so that the encoder is walked back only once.
        leaf = embeddings.detach().float().requires_grad_(True)
        # With so few tokens the plain attention trains twice as fast as the fused one on CPU.
        with sdpa_kernel(SDPBackend.MATH):
            figures = backward_interactions(
                self.model.sam,
                config.interactions,
                leaf,
                self._targets(batch, generator),
                generator,
            )
        if self.step_count >= config.frozen_steps and leaf.grad is not None:
            loss = loss + (embeddings.float() * leaf.grad).sum()
        loss.backward()
        return {**figures, "neck_iou": neck_iou, **self.descend()}

    def _targets(self, batch: ClickBatch, generator: torch.Generator) -> Targets:
        """Some of the batch's masks; where an image has few of them, some come twice."""
        B, K = batch.clicks.shape[:2]
        image_index = torch.arange(B).repeat_interleave(self.config.prompts_per_image)
        which = torch.randint(K, image_index.shape, generator=generator)
        return Targets(
            batch.masks[image_index, which], batch.valid[image_index], image_index, scale=4.0
        )
