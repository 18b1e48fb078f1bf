"""Our Segment Anything as transformers' SamModel: its configuration, its names of our weights."""

import re

from torch import Tensor
from transformers import SamConfig as TheirConfig
from transformers import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from model.image_encoder import ViTConfig
from model.sam import STRIDE, SamConfig

# Ours -> theirs, applied in order.
RENAMES = [
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"^vision_encoder\.blocks", "vision_encoder.layers"),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"\.norm(\d)", r".layer_norm\1"),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"prompt_encoder\.pe_layer\..*", "prompt_encoder.shared_embedding.positional_embedding"),
    (r"prompt_encoder\.point_embeddings", "prompt_encoder.point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.1", r"\1.layers.0"),
    (r"(hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.2", r"\1.proj_out"),
]


def their_config(config: SamConfig, attn_implementation: str | None = None) -> TheirConfig:
    """An encoder of theirs that fits; instead of a TinyViT, which they lack, the smallest ViT."""
    vit = config.image_encoder
    if not isinstance(vit, ViTConfig):
        vit = ViTConfig(embed_dim=16, depth=1, num_heads=1, global_attn_indexes=(0,))
    size, C = config.image_size, config.embed_dim
    vision = SamVisionConfig(
        hidden_size=vit.embed_dim,
        output_channels=C,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.num_heads,
        image_size=size,
        window_size=vit.window_size,
        global_attn_indexes=list(vit.global_attn_indexes),
        mlp_dim=vit.embed_dim * 4,
        num_pos_feats=C // 2,
    )
    prompt = SamPromptEncoderConfig(
        hidden_size=C, image_size=size, image_embedding_size=size // STRIDE
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=C,
        num_hidden_layers=config.decoder_depth,
        iou_head_hidden_dim=C,
        # The official decoder norms with torch's default; transformers deviates without a word.
        layer_norm_eps=1e-5,
    )
    return TheirConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(),
        attn_implementation=attn_implementation,
    )


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        theirs[name] = tensor
    shared = theirs["prompt_encoder.shared_embedding.positional_embedding"]
    return theirs | {"shared_image_embedding.positional_embedding": shared}
