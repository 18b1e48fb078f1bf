"""Mask decoder: image embeddings and prompts to mask logits and their estimated quality.

Axes: P prompts, M masks per prompt, T tokens, C channels, (h, w) the image embedding's grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.layers import MLP, LayerNorm2d
from model.two_way_transformer import TwoWayTransformer

NUM_HEADS = 8
MLP_DIM = 2048


@dataclass(frozen=True)
class MaskPrediction:
    low_res_masks: Tensor
    """(P, M, S / 4, S / 4) logits in the input frame."""
    predicted_iou: Tensor
    """(P, M), not clamped."""
    iou_token: Tensor
    """(P, C), from which `predicted_iou` was read."""


def wanted_outputs(multimask_output: bool | None) -> slice:
    """Of all: those after the first, the first alone or, for None, every one."""
    if multimask_output is None:
        return slice(None)
    return slice(1, None) if multimask_output else slice(1)


class MaskDecoder(nn.Module):
    def __init__(self, embed_dim: int, depth: int, num_multimask_outputs: int) -> None:
        super().__init__()
        self.num_mask_tokens = num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(depth, embed_dim, NUM_HEADS, MLP_DIM)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, embed_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, embed_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(embed_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(embed_dim // 4, embed_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(embed_dim, embed_dim, embed_dim // 8, num_layers=3)
            for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(embed_dim, embed_dim, self.num_mask_tokens, num_layers=3)

    def forward(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, *, multimask_output: bool | None
    ) -> MaskPrediction:
        """Masks for P prompts.

        Args:
            image: (P, C, h, w), image embeddings with the dense prompts already added.
            image_pe: (1, C, h, w), positions of the image's cells.
            sparse: (P, T, C), prompt tokens.
            multimask_output: whole, part and subpart; otherwise the one mask of the token that
                is meant for prompts without ambiguity. None: that one, and then the three.
        """
        tokens, upscaled = self.read(image, image_pe, sparse)
        predicted_iou, weights = self.predict(tokens, multimask_output=multimask_output)
        masks = torch.einsum("pmc,pchw->pmhw", weights, upscaled)
        return MaskPrediction(masks, predicted_iou, tokens[:, 0])

    def read(self, image: Tensor, image_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (P, T, C) that have read the image, and its cells (P, C / 8, 4h, 4w), upscaled."""
        h, w = image.shape[-2:]
        tokens, cells = self.transformer(
            image.flatten(2).transpose(1, 2),
            image_pe.flatten(2).transpose(1, 2),
            self.prompt_tokens(sparse),
        )
        upscaled: Tensor = self.output_upscaling(torch.unflatten(cells.transpose(1, 2), 2, (h, w)))
        return tokens, upscaled

    def prompt_tokens(self, sparse: Tensor) -> Tensor:
        """(P, T, C): the token of the IoU, one of each mask, and the prompt's own (P, _, C)."""
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)

    def predict(self, tokens: Tensor, *, multimask_output: bool | None) -> tuple[Tensor, Tensor]:
        """From tokens (P, T, C) that have read: predicted IoU (P, M), channel weights (P, M, _).

        Only the outputs asked for are computed: the single mask is output 0, the rest follow.
        """
        wanted = wanted_outputs(multimask_output)
        outputs = range(self.num_mask_tokens)[wanted]
        weights = torch.stack(
            [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in outputs], dim=1
        )
        predicted_iou: Tensor = self.iou_prediction_head(tokens[:, 0])
        return predicted_iou[:, wanted], weights
