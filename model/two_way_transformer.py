"""The decoder's transformer: tokens read from the image, and the image reads from the tokens.

Axes: P prompts, T tokens, K image cells (h * w), C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import MLPBlock


class TwoWayTransformer(nn.Module):
    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(dim, num_heads, mlp_dim, is_first=index == 0)
            for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image cells (P, K, C), their positions (1, K, C) and tokens (P, T, C).

        Returns:
            The tokens and the image cells, updated.
        """
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + attended), keys


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens; post-norm."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        queries = self.attend_to_tokens(queries, query_pe)

        q, k = queries + query_pe, keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(q, k, keys))
        queries = self.norm3(queries + self.mlp(queries))

        q = queries + query_pe
        keys = self.norm4(keys + self.cross_attn_image_to_token(k, q, queries))
        return queries, keys

    def attend_to_tokens(self, queries: Tensor, query_pe: Tensor) -> Tensor:
        # In the first block the queries are still their own positions: adding them again, or
        # carrying them past the attention, would say nothing new.
        if self.is_first:
            attended: Tensor = self.norm1(self.self_attn(queries, queries, queries))
            return attended
        q = queries + query_pe
        attended = self.norm1(queries + self.self_attn(q, q, queries))
        return attended


class Attention(nn.Module):
    """Multi-head attention, at a fraction of the width when `downsample_rate` is above 1."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner_dim = dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        return out
