"""TinyViT as image encoder: MobileSAM's layout, under MobileSAM's parameter names.

Convolutions down to stride 8, then windowed attention with a depthwise convolution inside each
block. The last downsample has stride 1, so the embedding lies at stride 16, as ViT's does.
Any input size works that is a multiple of 16: windows that do not fit are padded with zeros.
"""

# Axes: B images, C channels, (H, W) the feature map of a stage, N tokens of a window.

from collections.abc import Mapping
from math import isqrt
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from model.layers import DropPath, LayerNorm2d


class TinyViTConfig(BaseModel):
    """Shape of the encoder; the defaults are MobileSAM's TinyViT-5M."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["tiny_vit"] = "tiny_vit"
    embed_dims: tuple[int, int, int, int] = (64, 128, 160, 320)
    """Channels at strides 4, 8, 16 and 16. The official code gives the last downsample stride 1
    only where the last entry is 320, 448 or 576; ours always does."""
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    """The first stage is convolutional; its entry is kept so that the official arguments fit."""
    window_sizes: tuple[int, int, int, int] = (7, 7, 14, 7)
    mlp_ratio: float = 4.0
    mbconv_expand_ratio: float = 4.0
    num_classes: int = 0
    """Width of the classifier that the official code builds and never calls; 1000 in MobileSAM."""

    @model_validator(mode="after")
    def _heads_divide_widths(self) -> "TinyViTConfig":
        for dim, heads in zip(self.embed_dims[1:], self.num_heads[1:], strict=True):
            if dim % heads:
                raise ValueError(
                    f"embed_dims {self.embed_dims} do not divide into num_heads {self.num_heads}: "
                    f"{dim} is no multiple of {heads}; change one of the two"
                )
        return self


class TinyViT(nn.Module):
    """Images to embeddings at stride 16."""

    def __init__(self, config: TinyViTConfig, out_channels: int = 256) -> None:
        super().__init__()
        dims = config.embed_dims
        self.embed_dims = dims
        self.patch_embed = PatchEmbed(dims[0])
        self.layers = nn.ModuleList(_stage(config, index) for index in range(4))
        # Not called: present so that checkpoints go to and from the official code unchanged.
        self.norm_head = nn.LayerNorm(dims[3]).requires_grad_(False)
        self.head = nn.Linear(dims[3], config.num_classes) if config.num_classes else nn.Identity()
        self.head.requires_grad_(False)
        self.neck = nn.Sequential(
            nn.Conv2d(dims[3], out_channels, 1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )
        self.apply(_init_linear)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised and padded -> (B, out_channels, S/16, S/16)."""
        features = self.stages(images)[-1]
        if self.training:
            embeddings: Tensor = self.neck(features)
            return embeddings
        with torch.autocast(features.device.type, enabled=False):  # as in ConvNorm
            embeddings = self.neck(features.float())
        return embeddings

    def stages(self, images: Tensor) -> list[Tensor]:
        """What the four stages see, at strides 4, 8, 16 and 16; the neck takes the last."""
        x: Tensor = self.patch_embed(images)
        seen = []
        for layer in self.layers:
            assert isinstance(layer, EncoderStage)
            x = layer(x)
            seen.append(x)
            if layer.downsample is not None:
                x = layer.downsample(x)
        return seen


class EncoderStage(nn.Module):
    """Blocks of one width; holds the step to the next, which `TinyViT.stages` takes."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm; called `c` and `bn` officially."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        norm_weight: float = 1.0,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.c = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.bn.weight, norm_weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self._normed(x)
        # In use always in fp32: the features themselves pass through here, and their rounding would
        # add up. Attention and MLPs, which only add to them, may be in half precision.
        with torch.autocast(x.device.type, enabled=False):
            return self._normed(x.float())

    def _normed(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.c(x))
        return y


class PatchEmbed(nn.Module):
    """Two strided convolutions: stride 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, dim // 2, 3, stride=2), nn.GELU(), ConvNorm(dim // 2, dim, 3, stride=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.seq(images)
        return x


class PatchMerging(nn.Module):
    """A new width, and half the resolution where `stride` is 2."""

    def __init__(self, dim: int, out_dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, 3, stride=stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return merged


class MBConv(nn.Module):
    """Inverted bottleneck; starts as the identity, since its last norm starts at zero."""

    def __init__(self, dim: int, expand_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * expand_ratio)
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim, norm_weight=0.0)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(x + self.drop_path(residual))


class TinyViTBlock(nn.Module):
    """Windowed attention, depthwise convolution across the windows' borders, MLP."""

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)
        self.mlp = PreNormMLP(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        # Channels last from here to the convolution: a view, where the memory format agrees.
        tokens = x.permute(0, 2, 3, 1)
        size_hw = (x.shape[2], x.shape[3])
        attended = self.attn(split_windows(tokens, self.window_size))
        tokens = tokens + self.drop_path(join_windows(attended, self.window_size, size_hw))
        mixed: Tensor = self.local_conv(tokens.permute(0, 3, 1, 2))
        tokens = mixed.permute(0, 2, 3, 1)
        out: Tensor = tokens + self.drop_path(self.mlp(tokens))
        return out.permute(0, 3, 1, 2)


class PreNormMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return y


class WindowAttention(nn.Module):
    """Attention within a window, with one learned bias per head and distance."""

    attention_bias_idxs: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))
        self.register_buffer("attention_bias_idxs", _distance_ids(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, N, C) -> the same shape."""
        num_windows, N, C = x.shape
        # Officially each head's q, k and v stand together, head after head.
        qkv = self.qkv(self.norm(x)).view(num_windows, N, self.num_heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        bias = self.attention_biases[:, self.attention_bias_idxs].to(q.dtype)
        if bias.requires_grad:
            # Written out: with a bias that learns, torch's fused attention is 2-5x slower on CPU.
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(dim=-1)
            attended = weights.to(v.dtype) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y: Tensor = self.proj(attended.transpose(1, 2).reshape(num_windows, N, C))
        return y


def split_windows(tokens: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) -> (windows, window_size**2, C), padded with zeros right and bottom."""
    B, H, W, C = tokens.shape
    tokens = F.pad(tokens, (0, 0, 0, -W % window_size, 0, -H % window_size))
    rows, columns = tokens.shape[1] // window_size, tokens.shape[2] // window_size
    windows = tokens.view(B, rows, window_size, columns, window_size, C).transpose(2, 3)
    return windows.reshape(B * rows * columns, window_size**2, C)


def join_windows(windows: Tensor, window_size: int, size_hw: tuple[int, int]) -> Tensor:
    """Undo `split_windows`: (windows, window_size**2, C) -> (B, H, W, C) without the padding."""
    H, W = size_hw
    rows, columns = -(-H // window_size), -(-W // window_size)
    C = windows.shape[-1]
    grid = windows.view(-1, rows, columns, window_size, window_size, C).transpose(2, 3)
    return grid.reshape(-1, rows * window_size, columns * window_size, C)[:, :H, :W]


def _stage(config: TinyViTConfig, index: int) -> EncoderStage:
    dim, depth = config.embed_dims[index], config.depths[index]
    blocks: list[nn.Module]
    if index == 0:
        blocks = [MBConv(dim, config.mbconv_expand_ratio) for _ in range(depth)]
    else:
        heads, window_size = config.num_heads[index], config.window_sizes[index]
        blocks = [TinyViTBlock(dim, heads, window_size, config.mlp_ratio) for _ in range(depth)]
    downsample = None
    if index < 3:
        downsample = PatchMerging(dim, config.embed_dims[index + 1], stride=1 if index == 2 else 2)
    return EncoderStage(blocks, downsample)


def fit_attention_biases(
    state: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of an encoder for another that differs in its windows alone.

    A bias belongs to a distance; in a window of more cells for the same part of the image, the
    biases of the distances between are interpolated, as Swin V2 does with its tables.

    Args:
        state: `state_dict` of a module with such an encoder in it.
        wanted: that of the same module with the other windows.
    """
    fitted = dict(state)
    for name, biases in state.items():
        if name.endswith("attention_biases") and biases.shape != wanted[name].shape:
            heads, old, new = len(biases), *(isqrt(x.shape[1]) for x in (biases, wanted[name]))
            table = biases.view(1, heads, old, old)
            table = F.interpolate(table, (new, new), mode="bilinear", align_corners=True)
            fitted[name] = table.view(heads, new**2)
    return fitted


def _distance_ids(window_size: int) -> Tensor:
    """(N, N): which learned bias holds between two tokens, by |dy| * window_size + |dx|."""
    y, x = torch.meshgrid(torch.arange(window_size), torch.arange(window_size), indexing="ij")
    y, x = y.flatten(), x.flatten()
    ids: Tensor = (y[:, None] - y).abs() * window_size + (x[:, None] - x).abs()
    return ids


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def freeze_norm_statistics(module: nn.Module) -> None:
    """Let batch norms normalise by what they have learnt, until `module.train()` is called again.

    Their scale and shift still learn.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
