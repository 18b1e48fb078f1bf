"""Segment Anything: its configuration, the published presets, and the model itself.

Parameter names are those of the official code, so its checkpoints load as they are.
Axes: B images, P prompts, M masks per prompt, S the side of the padded input square.
"""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from model.factored_decoder import FactoredDecoder
from model.image_encoder import ImageEncoderViT, ViTConfig
from model.mask_decoder import MaskDecoder, MaskPrediction
from model.prompt_encoder import PromptEncoder, Prompts
from model.tiny_vit import TinyViT, TinyViTConfig
from model.transforms import ResizeLongestSide

STRIDE = 16
"""Input pixels per cell of the image embedding, for every encoder."""


class SamConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image_encoder: Annotated[ViTConfig | TinyViTConfig, Field(discriminator="kind")]
    image_size: int = Field(default=1024, gt=0, multiple_of=STRIDE)
    """Side of the padded input square, pixels."""
    embed_dim: int = Field(default=256, gt=0, multiple_of=16)
    """Channels of the image embedding and width of the decoder."""
    decoder_depth: int = Field(default=2, ge=1)
    """Two-way blocks; 2 in the released models, 3 in the one that made SA-1B."""
    num_multimask_outputs: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _encoder_has_our_stride(self) -> "SamConfig":
        encoder = self.image_encoder
        if isinstance(encoder, ViTConfig) and encoder.patch_size != STRIDE:
            raise ValueError(
                f"patch_size is {encoder.patch_size}; expected {STRIDE}, because masks are "
                "decoded at a quarter of the input"
            )
        return self

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding, cells."""
        return self.image_size // STRIDE

    @property
    def low_res_size(self) -> int:
        """Side of `low_res_masks` and of mask prompts, pixels."""
        return self.image_size // 4

    def transform(self, size_hw_orig: tuple[int, int]) -> ResizeLongestSide:
        """The way from images of this size to the model's input, and back."""
        return ResizeLongestSide(size_hw_orig, self.image_size)

    @staticmethod
    def preset(name: str) -> "SamConfig":
        """The configuration of a published model: vit_b, vit_l, vit_h or mobile_sam."""
        if name not in PRESETS:
            raise ValueError(f"no model preset {name!r}; expected one of {', '.join(PRESETS)}")
        return PRESETS[name]


def _vit(embed_dim: int, depth: int, num_heads: int, global_attn: tuple[int, ...]) -> SamConfig:
    encoder = ViTConfig(
        embed_dim=embed_dim, depth=depth, num_heads=num_heads, global_attn_indexes=global_attn
    )
    return SamConfig(image_encoder=encoder)


PRESETS = {
    "vit_b": _vit(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": _vit(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": _vit(1280, 32, 16, (7, 15, 23, 31)),
    "mobile_sam": SamConfig(image_encoder=TinyViTConfig()),
}


class Sam(nn.Module):
    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = _build_image_encoder(config)
        self.prompt_encoder = PromptEncoder(
            config.embed_dim, config.image_size, config.embedding_size
        )
        self.mask_decoder = MaskDecoder(
            config.embed_dim, config.decoder_depth, config.num_multimask_outputs
        )

    @property
    def device(self) -> torch.device:
        return self.prompt_encoder.no_mask_embed.weight.device

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S), normalised and padded, to image embeddings (B, C, S / 16, S / 16)."""
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            raise ValueError(
                f"images are {tuple(images.shape[-2:])}; expected ({size}, {size}): resize and pad "
                "them with model.transforms.ResizeLongestSide"
            )
        embeddings: Tensor = self.image_encoder(images)
        return embeddings

    def prepare(self, image_embedding: Tensor) -> FactoredDecoder:
        """One image (1, C, S / 16, S / 16), ready to be asked by many prompts.

        The same answers as `decode`, in a quarter of the time for points and boxes; for inference,
        and without mask prompts.
        """
        return FactoredDecoder(self.prompt_encoder, self.mask_decoder, image_embedding)

    def decode(
        self,
        image_embeddings: Tensor,
        prompts: Prompts,
        *,
        multimask_output: bool | None,
        image_index: Tensor | None = None,
    ) -> MaskPrediction:
        """Masks for P prompts, spread over B images in any way; P may be 0.

        Args:
            image_embeddings: (B, C, S / 16, S / 16).
            multimask_output: three masks per prompt (whole, part, subpart), otherwise one. None:
                all four, the one first.
            image_index: (P,), the image of each prompt; may be left out when B is 1.
        """
        if image_index is None:
            if len(image_embeddings) != 1:
                raise ValueError(
                    f"{len(image_embeddings)} image embeddings without image_index; expected "
                    "image_index to say to which image each prompt belongs"
                )
            image_index = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        sparse, dense = self.prompt_encoder(prompts)
        dtype = image_embeddings.dtype  # under autocast, fp32 here would be cast in every layer
        prediction: MaskPrediction = self.mask_decoder(
            image_embeddings[image_index] + dense.to(dtype),
            self.prompt_encoder.dense_position_embedding().to(dtype),
            sparse,
            multimask_output=multimask_output,
        )
        return prediction


def _build_image_encoder(config: SamConfig) -> nn.Module:
    if isinstance(config.image_encoder, TinyViTConfig):
        return TinyViT(config.image_encoder, config.embed_dim)
    return ImageEncoderViT(config.image_encoder, config.image_size, config.embed_dim)
