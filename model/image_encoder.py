"""ViT image encoder: windowed attention with a few global blocks, and a neck down to SAM's width.

Axes: B images (or windows), (h, w) tokens of an image or of a window, C channels, d channels of
a head. Tokens keep their two dimensions all the way: (B, h, w, C).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from model.layers import DropPath, LayerNorm2d, MLPBlock

# Elements of the relative-position bias held at once. A global block at 64x64 tokens would need
# heads * 4096^2 of them, 0.8 GB in ViT-B: query rows are taken in chunks to stay below this, which
# costs no time (ViT-B: peak 1.0 GB instead of 2.4 GB).
MAX_BIAS_ELEMENTS = 2**24


class ViTConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["vit"] = "vit"
    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    """Blocks that attend over the whole image; all others attend within windows."""
    window_size: int = 14
    """Side of a window in tokens."""
    patch_size: int = 16
    mlp_ratio: float = 4.0


class ImageEncoderViT(nn.Module):
    def __init__(self, config: ViTConfig, image_size: int, out_channels: int) -> None:
        super().__init__()
        dim, side = config.embed_dim, image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                config,
                input_size=side if index in config.global_attn_indexes else config.window_size,
                is_global=index in config.global_attn_indexes,
            )
            for index in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out_channels, kernel_size=1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S), normalised and padded, to (B, out_channels, S / patch, S / patch)."""
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embeddings: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embeddings


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images)
        return patches.permute(0, 2, 3, 1)


class Block(nn.Module):
    """Pre-norm transformer block; attention over the image, or window by window."""

    def __init__(self, config: ViTConfig, *, input_size: int, is_global: bool) -> None:
        super().__init__()
        dim = config.embed_dim
        self.window_size = 0 if is_global else config.window_size
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads, input_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, int(dim * config.mlp_ratio))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.window_size == 0:
            y = self.attn(y)
        else:
            windows = partition_windows(y, self.window_size)
            y = merge_windows(self.attn(windows), self.window_size, (x.shape[1], x.shape[2]))
        x = x + self.drop_path(y)
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Attention(nn.Module):
    """Multi-head attention over a square of tokens, with decomposed relative positions."""

    def __init__(self, dim: int, num_heads: int, input_size: int) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size - 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        B, h, w, C = x.shape
        qkv = self.qkv(x).reshape(B, h * w, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, h * w, d)
        chunk = max(1, MAX_BIAS_ELEMENTS // (B * self.num_heads * h * w * w)) * w
        out = torch.cat(
            [
                F.scaled_dot_product_attention(
                    q[:, :, start : start + chunk],
                    k,
                    v,
                    attn_mask=self.relative_position_bias(q[:, :, start : start + chunk], start, h),
                )
                for start in range(0, h * w, chunk)
            ],
            dim=2,
        )
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(B, h, w, C))
        return projected

    def relative_position_bias(self, q: Tensor, start: int, side: int) -> Tensor:
        """(B, heads, n, side * side) for the n queries, whole rows, that begin at token `start`."""
        B, num_heads, n, d = q.shape
        rows = torch.arange(start // side, (start + n) // side, device=q.device)
        cells = torch.arange(side, device=q.device)
        towards_h = self.rel_pos_h[rows[:, None] - cells + side - 1].to(q.dtype)
        towards_w = self.rel_pos_w[cells[:, None] - cells + side - 1].to(q.dtype)
        grid = q.reshape(B, num_heads, len(rows), side, d)
        bias_h = torch.einsum("bnhwd,hkd->bnhwk", grid, towards_h)
        bias_w = torch.einsum("bnhwd,wkd->bnhwk", grid, towards_w)
        bias = bias_h[..., :, None] + bias_w[..., None, :]
        return bias.reshape(B, num_heads, n, side * side)


def partition_windows(x: Tensor, window: int) -> Tensor:
    """(B, h, w, C) to (B * number of windows, window, window, C), zero-padded right and bottom.

    The padding takes part in attention, as in the official model.
    """
    B, h, w, C = x.shape
    x = F.pad(x, (0, 0, 0, -w % window, 0, -h % window))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(B, rows, window, columns, window, C)
    return x.transpose(2, 3).reshape(-1, window, window, C)


def merge_windows(windows: Tensor, window: int, size_hw: tuple[int, int]) -> Tensor:
    """The inverse of `partition_windows`: back to (B, h, w, C), padding cut off."""
    h, w = size_hw
    rows, columns = -(-h // window), -(-w // window)
    x = windows.reshape(-1, rows, columns, window, window, windows.shape[-1])
    x = x.transpose(2, 3).reshape(-1, rows * window, columns * window, windows.shape[-1])
    return x[:, :h, :w]
