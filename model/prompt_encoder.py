"""Prompt encoder: points, boxes and mask logits become tokens and a dense embedding.

Axes: P prompts, N points per prompt, T tokens, C channels, (h, w) the image embedding's grid,
S the side of the padded input square. All coordinates are (x, y) pixels of the input frame.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from model.layers import LayerNorm2d


class PointLabel(IntEnum):
    PADDING = -1
    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3


@dataclass(frozen=True)
class Prompts:
    """P prompts, each asking for one object; every field that is given has P rows."""

    point_coords: Tensor | None = None
    """(P, N, 2), input frame."""
    point_labels: Tensor | None = None
    """(P, N) of `PointLabel`."""
    boxes: Tensor | None = None
    """(P, 4) xyxy, input frame."""
    mask_input: Tensor | None = None
    """(P, 1, S / 4, S / 4) logits."""

    def __post_init__(self) -> None:
        if (self.point_coords is None) != (self.point_labels is None):
            raise ValueError("point_coords and point_labels must be given together")
        coords, labels = self.point_coords, self.point_labels
        # A label of one point would be spread over all of them.
        if coords is not None and labels is not None and coords.shape != (*labels.shape, 2):
            raise ValueError(
                f"point_coords are {tuple(coords.shape)} and point_labels {tuple(labels.shape)}; "
                "expected (P, N, 2) and (P, N)"
            )
        rows = {
            len(t)
            for t in (self.point_coords, self.point_labels, self.boxes, self.mask_input)
            if t is not None
        }
        if len(rows) != 1:
            raise ValueError(
                f"the parts of Prompts have {sorted(rows)} rows; expected one number for all, "
                "and at least one part"
            )

    def __len__(self) -> int:
        parts = (self.point_coords, self.boxes, self.mask_input)
        return next(len(part) for part in parts if part is not None)


class PromptEncoder(nn.Module):
    def __init__(self, embed_dim: int, image_size: int, embedding_size: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        # Indexed by PointLabel: background, foreground, and the two corners of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, kernel_size=2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, embed_dim, kernel_size=1),
        )

    def forward(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Sparse tokens (P, T, C) and dense embeddings (P, C, h, w); the latter may be a view."""
        return self.embed_sparse(prompts), self.embed_dense(prompts)

    def dense_position_embedding(self) -> Tensor:
        """(1, C, h, w): where each cell of the image embedding lies."""
        side = self.embedding_size
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (torch.arange(side, device=matrix.device) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        encoded: Tensor = self.pe_layer(torch.stack([x, y], dim=-1))
        return encoded.permute(2, 0, 1)[None]

    def embed_sparse(self, prompts: Prompts) -> Tensor:
        tokens = []
        if prompts.point_coords is not None and prompts.point_labels is not None:
            tokens.append(self.embed_points(prompts.point_coords, prompts.point_labels))
            if prompts.boxes is None:  # as the official model was trained: padding for the box
                tokens.append(self.not_a_point_embed.weight.expand(len(prompts), 1, -1))
        if prompts.boxes is not None:
            corners = (PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT)
            labels = torch.tensor(corners, device=prompts.boxes.device).expand(len(prompts), 2)
            tokens.append(self.embed_points(prompts.boxes.reshape(-1, 2, 2), labels))
        if not tokens:
            return self.no_mask_embed.weight.new_zeros(len(prompts), 0, self.embed_dim)
        return torch.cat(tokens, dim=1)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """(P, N, 2) pixels and (P, N) labels to (P, N, C)."""
        position: Tensor = self.pe_layer((coords + 0.5) / self.image_size)  # a pixel's centre
        is_point = (labels != PointLabel.PADDING)[..., None]
        # A padding point has no position; rows of `meaning` follow PointLabel, which starts at -1.
        meaning = torch.cat(
            [self.not_a_point_embed.weight, *self.point_embeddings.parameters()], dim=0
        )
        return position * is_point + meaning[labels.long() + 1]

    def embed_dense(self, prompts: Prompts) -> Tensor:
        if prompts.mask_input is not None:
            dense: Tensor = self.mask_downscaling(prompts.mask_input)
            return dense
        side = self.embedding_size
        return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(prompts), -1, side, side)


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of a position in the unit square."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def forward(self, coords: Tensor) -> Tensor:
        """(..., 2) in [0, 1] to (..., 2 * num_features).

        Always fp32 inside: half precision would blur the position to several pixels.
        """
        matrix = self.positional_encoding_gaussian_matrix
        with torch.autocast(coords.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * coords.float() - 1) @ matrix.float())
            features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return features.to(matrix.dtype)
