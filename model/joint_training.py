"""The second half of pretraining: SAM's prompt encoder and decoder on top of a pretrained encoder.

Everything learns together. Pixel embeddings (model/pretraining.py) go on teaching the encoder,
because they teach many masks for the price of one image; the decoder learns from a few interactions
of the paper's kind (model/interactions.py). The paper's own training, for the rounds after a first
checkpoint, is model/training.py.
"""

# Axes: B images, K clicks of one image.

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.interactions import InteractionConfig, Targets, backward_interactions
from model.losses import keep_layout
from model.pretraining import (
    AveragedConfig,
    AveragedTraining,
    ClickBatch,
    PixelEmbedder,
    PretrainingConfig,
)
from model.sam import Sam
from model.self_report import SelfReport
from model.tiny_vit import TinyViT
from model.two_way_transformer import TwoWayAttentionBlock


class JointConfig(AveragedConfig):
    prompts_per_image: int = 8
    """Of the batch's clicks on an image, so many masks are asked of the decoder too; with 0 the
    encoder learns alone, from pixel embeddings."""
    frozen_steps: int = 0
    """Steps at the beginning in which the decoder learns alone: half the work of a whole step. Only
    the statistics of the encoder's norms go on."""
    embedding_weight: float = 0.5
    """Of the pixel embeddings' loss, beside the decoder's."""
    correct_every: int = Field(default=1, ge=1)
    """Corrections follow the first answer in every n-th step only: they cost as much as it does,
    each, and the others teach more images in the same time."""
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
        self.self_report = SelfReport(sam.config.embed_dim, sam.mask_decoder.num_mask_tokens)

    def start_from(self, embedder: dict[str, Tensor]) -> None:
        """Take over a pretrained embedder's state; the decoder begins with its upscaling layers."""
        self.embedder.load_state_dict(embedder)
        upscaling = self.embedder.upscaling.state_dict()
        self.sam.mask_decoder.output_upscaling.load_state_dict(upscaling)
        aim_at_prompts(self.sam)


class JointTrainer(AveragedTraining[JointModel]):
    def __init__(self, model: JointModel, config: JointConfig) -> None:
        super().__init__(model, config)
        self.config = config
        model.sam.mask_decoder.output_upscaling.register_forward_hook(_keep_layout)

    def step(self, batch: ClickBatch, generator: torch.Generator) -> dict[str, float]:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        targets = self._targets(batch, generator)
        if self.step_count < self.config.frozen_steps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                embeddings = self.model.sam.image_encoder(images)
            figures = self._interact(self._as_decoded(embeddings), targets, generator)
            return {**figures, **self.descend()}
        embeddings, loss, figures = self._embed(images, batch)
        if self.config.prompts_per_image > 0:
            # The interactions end at this leaf, so that the encoder is walked back only once.
            leaf = self._as_decoded(embeddings.detach()).requires_grad_(True)
            figures |= self._interact(leaf, targets, generator)
            if leaf.grad is not None:
                loss = loss + (embeddings.float() * leaf.grad.float()).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return {**figures, **self.descend()}

    def _embed(self, images: Tensor, batch: ClickBatch) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Image embeddings, and what the pixel embeddings lose."""
        if self.config.embedding_weight == 0:
            with torch.autocast("cpu", torch.bfloat16):
                return self.model.sam.image_encoder(images), torch.zeros(()), {}
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, by_pyramid, by_neck = self.model.embedder(images)
        pyramid_loss, pyramid_iou = self.model.embedder.click_loss(by_pyramid, batch)
        neck_loss, neck_iou = self.model.embedder.click_loss(by_neck, batch)
        loss = self.config.embedding_weight * (pyramid_loss + neck_loss)
        figures = {"embedding_loss": loss.item(), "pyramid_iou": pyramid_iou, "neck_iou": neck_iou}
        return embeddings, loss, figures

    def _as_decoded(self, embeddings: Tensor) -> Tensor:
        """In the precision of the interactions, so that no layer of the decoder has to cast."""
        bf16 = self.config.interactions.precision == "bf16"
        return embeddings.to(torch.bfloat16 if bf16 else torch.float32)

    def _interact(
        self, embeddings: Tensor, targets: Targets, generator: torch.Generator
    ) -> dict[str, float]:
        interactions = self.config.interactions
        if self.step_count % self.config.correct_every > 0:
            interactions = interactions.model_copy(update={"num_corrections": 0, "num_repeats": 0})
        # With so few tokens the plain attention trains twice as fast as the fused one on CPU.
        with sdpa_kernel(SDPBackend.MATH):
            return backward_interactions(
                self.model.sam,
                interactions,
                embeddings,
                targets,
                generator,
                self.model.self_report,
            )

    def _targets(self, batch: ClickBatch, generator: torch.Generator) -> Targets:
        """Some of the batch's masks; where an image has few of them, some come twice."""
        B, K = batch.clicks.shape[:2]
        image_index = torch.arange(B).repeat_interleave(self.config.prompts_per_image)
        which = torch.randint(K, image_index.shape, generator=generator)
        return Targets(
            batch.masks[image_index, which],
            batch.valid[image_index],
            image_index,
            scale=4.0,
            first_points=(batch.clicks[image_index, which] + 0.5) * 4.0 - 0.5,
        )


def _keep_layout(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    keep_layout(output)


@torch.no_grad()
def aim_at_prompts(sam: Sam, sharpness: float = 8.0) -> None:
    """Let every token of a new decoder look at the place of its prompt from the first step on.

    From random weights the tokens attend to the whole image alike, and hundreds of steps go by
    before any of them finds its click. Positions are encoded so that near ones are alike; queries
    and keys that both keep the main directions of that code therefore meet where the click is.

    Args:
        sharpness: how much the logit of the click's own cell stands out; half of it for the first
            head, twice for the last.
    """
    positions = sam.prompt_encoder.dense_position_embedding()[0].flatten(1).T
    centre = positions.mean(dim=0)
    directions = torch.linalg.svd(positions - centre, full_matrices=False).Vh
    transformer = sam.mask_decoder.transformer
    layers = [layer for layer in transformer.layers if isinstance(layer, TwoWayAttentionBlock)]
    attentions = [layer.cross_attn_token_to_image for layer in layers]
    for attention in (*attentions, transformer.final_attn_token_to_image):
        heads = attention.num_heads
        basis = directions[: attention.q_proj.out_features // heads]
        energy = ((positions - centre) @ basis.T).square().sum(1).mean()
        logits = sharpness * torch.logspace(-1, 1, heads, base=2.0)
        gains = (logits * len(basis) ** 0.5 / energy).sqrt()
        weight = (gains[:, None, None] * basis).flatten(0, 1)
        attention.q_proj.weight.copy_(weight)
        attention.q_proj.bias.copy_(-weight @ centre)
        attention.k_proj.weight.copy_(weight)
        attention.k_proj.bias.zero_()
    # The first self-attention hands the prompt's position on to the output tokens, unturned.
    for projection in (layers[0].self_attn.v_proj, layers[0].self_attn.out_proj):
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    learned = [*encoder.point_embeddings, encoder.not_a_point_embed]
    for embedding in (*learned, decoder.iou_token, decoder.mask_tokens):
        embedding.weight.mul_(0.3)  # or they would drown the position
