"""The mask decoder for many prompts on one image, with the image's cells kept as factors.

The plain decoder (model/mask_decoder.py) carries K x C image cells through its blocks for every
prompt, and almost all of its time goes into reading and writing them. But a block changes a cell in
two ways only: it adds attention over the prompt's few tokens, which is a matrix of rank H * T, and
it normalises the cell. So for every prompt

    cells = scale * (shared + columns.T @ rows)

holds exactly. `shared` (K, C) is the image's, the same for all prompts; `scale` (K,) is the product
of the norms' inverse deviations; `columns` (R, K) are attention weights, and one more for every
bias so far; `rows` (R, C) are linear in the tokens' values. A linear map of the channels passes
through the sum: it is applied to `shared` once per image, and to the rows once per prompt.
Subtracting the mean over the channels is such a map, and the variance is a quadratic form of the
columns. So the cells themselves are never written down: not for the attention that reads them, not
for the norms, not for the first upscaling layer.

Only the rounding differs from the plain decoder; tests/model/test_factored_decoder.py holds the two
together. Masks are a step of their own: predicted IoU does not need them, and refuses most prompts.

Axes: P prompts, T tokens, C channels, K cells (h * w), H heads of width D, R rows, N projected.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten

from model.layers import LayerNorm2d
from model.mask_decoder import MaskDecoder
from model.prompt_encoder import PromptEncoder, Prompts
from model.two_way_transformer import Attention, TwoWayAttentionBlock

CELLS_AT_ONCE = 2304
"""Of the image, when masks are made on a CPU: four prompts of 24 x 24 cells, one of 64 x 64. That
many fit a core's cache once they are upscaled; more are slower."""


Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RowMaker:
    """What makes the rows of a prompt: of every block its tokens' values, between constants.

    The order of rows, and of columns: constant 0, values of block 0, constant 1, and so on.
    """

    from_values: tuple[Tensor, ...]
    """(H, D, N) for each block: from a token's value to its row."""
    constants: tuple[Tensor, ...]
    """(N,), one more than blocks, or as many where a block's norm is still to come."""

    def __call__(self, values: Sequence[Tensor], num_prompts: int) -> Tensor:
        """(P, R, N) rows, from the values (H, P, T, D) of each block."""
        pieces = []
        for index, constant in enumerate(self.constants):
            pieces.append(constant.expand(num_prompts, 1, -1))
            if index < len(values):
                value = values[index]
                rows = value.flatten(1, 2) @ self.from_values[index]
                rows = unflatten(rows, 1, value.shape[1:3]).transpose(0, 1)
                pieces.append(rows.flatten(1, 2))
        return torch.cat(pieces, dim=1)

    def mapped(self, change: Change) -> "RowMaker":
        """The rows after a linear map of their last axis."""
        return RowMaker(tuple(map(change, self.from_values)), tuple(map(change, self.constants)))


@dataclass(frozen=True)
class Template:
    """What the cells of all prompts have in common at one place of the decoder."""

    shared: Tensor
    """(K, N)"""
    rows: RowMaker

    def mapped(self, change: Change) -> "Template":
        """The cells after a linear map of their channels."""
        return Template(change(self.shared), self.rows.mapped(change))

    def with_attention(self, attention: Attention) -> "Template":
        """Attention over tokens is added. Its bias joins the last constant: a bias, too."""
        weight = unflatten(attention.out_proj.weight.T, 0, (attention.num_heads, -1))
        *before, last = self.rows.constants
        constants = (*before, last + attention.out_proj.bias)
        return Template(self.shared, RowMaker((*self.rows.from_values, weight), constants))

    def with_gain_and_bias(self, norm: nn.LayerNorm) -> "Template":
        """What a norm does to centred cells, but for the deviation, which joins their scale."""
        gained = self.mapped(lambda channels: channels * norm.weight)
        constants = (*gained.rows.constants, norm.bias)
        return Template(gained.shared, RowMaker(gained.rows.from_values, constants))


@dataclass(frozen=True)
class Cells:
    """The image's cells as P prompts have changed them: scale * (shared + columns.T @ rows)."""

    columns: Tensor
    """(P, R, K)"""
    scale: Tensor
    """(P, K)"""
    values: tuple[Tensor, ...]
    """(H, P, T, D) of the tokens in each block so far; a `RowMaker` makes rows of them."""

    def select(self, index: Tensor) -> "Cells":
        """The cells of these prompts."""
        values = tuple(value[:, index] for value in self.values)
        return Cells(self.columns[index], self.scale[index], values)


class CellLogits:
    """Attention logits between tokens and cells, which come with their positions."""

    def __init__(
        self, template: Template, layer: nn.Linear, num_heads: int, position: Tensor
    ) -> None:
        projected = template.mapped(lambda channels: channels @ layer.weight.T)
        self._rows, self._num_heads = projected.rows, num_heads
        self._bias = unflatten(layer.bias, 0, (num_heads, 1, -1))
        self._shared = _by_head(projected.shared, num_heads)
        # No norm has scaled the positions, so they stay apart from the cells.
        self._position = _by_head(position @ layer.weight.T, num_heads)

    def __call__(self, tokens: Tensor, cells: Cells) -> Tensor:
        """(P, H, T, K), of tokens (P, T, N) that are projected already."""
        P, T, _ = tokens.shape
        tokens = _split_heads(tokens, self._num_heads)
        tokens = tokens * tokens.shape[-1] ** -0.5
        together, per_prompt = tokens.flatten(1, 2), tokens.transpose(0, 1)
        rows = unflatten(self._rows(cells.values, P), 2, (self._num_heads, -1))
        over_rows = per_prompt @ rows.permute(0, 2, 3, 1)
        logits = unflatten(over_rows.flatten(1, 2) @ cells.columns, 1, (self._num_heads, T))
        logits += unflatten(together @ self._shared, 1, (P, T)).transpose(0, 1)
        logits *= cells.scale[:, None, None]
        logits += unflatten(together @ self._position, 1, (P, T)).transpose(0, 1)
        logits += (per_prompt * self._bias).sum(-1, keepdim=True)
        return logits


class CellSums:
    """Sums of cells, weighted by attention."""

    def __init__(self, template: Template, layer: nn.Linear, num_heads: int) -> None:
        projected = template.mapped(lambda channels: channels @ layer.weight.T)
        self._rows, self._num_heads = projected.rows, num_heads
        self._bias = unflatten(layer.bias, 0, (num_heads, 1, -1))
        self._shared = _by_head(projected.shared, num_heads).transpose(1, 2).contiguous()

    def __call__(self, weights: Tensor, cells: Cells) -> Tensor:
        """(P, T, N), with weights (P, H, T, K), which are overwritten."""
        P, H, T, _ = weights.shape
        weights *= cells.scale[:, None, None]
        shared = weights.transpose(0, 1).flatten(1, 2) @ self._shared
        over_rows = weights.flatten(1, 2) @ cells.columns.transpose(1, 2)
        rows = unflatten(self._rows(cells.values, P), 2, (H, -1)).transpose(1, 2)
        sums = unflatten(shared, 1, (P, T)).transpose(0, 1)
        sums = sums + unflatten(over_rows, 1, (H, T)) @ rows + self._bias
        return sums.transpose(1, 2).flatten(2)


class CellVariance:
    """Variance of every cell over its channels, from the factors alone, without the scale."""

    def __init__(self, centred: Template) -> None:
        # Divided once, so that squares come out as means over the channels.
        share = centred.shared.shape[1] ** -0.5
        divided = centred.mapped(lambda channels: channels * share)
        self._square = divided.shared.square().sum(1)
        self._rows = divided.rows
        self._twice_with_shared = divided.rows.mapped(lambda rows: 2 * rows @ divided.shared.T)

    def __call__(self, cells: Cells) -> Tensor:
        """(P, K)"""
        rows = self._rows(cells.values, len(cells.scale))
        products = self._twice_with_shared(cells.values, len(cells.scale))
        products.baddbmm_(rows @ rows.transpose(1, 2), cells.columns)
        return (products.mul_(cells.columns).sum(1) + self._square).clamp(min=0)


class TokenToImage:
    """An attention by which tokens read from factored cells."""

    def __init__(self, template: Template, attention: Attention, position: Tensor) -> None:
        self.attention = attention
        self.logits = CellLogits(template, attention.k_proj, attention.num_heads, position)
        self.sums = CellSums(template, attention.v_proj, attention.num_heads)

    def __call__(self, queries: Tensor, cells: Cells) -> Tensor:
        """(P, T, C), what the queries (P, T, C) read."""
        weights = self.logits(self.attention.q_proj(queries), cells).softmax(dim=-1)
        read: Tensor = self.attention.out_proj(self.sums(weights, cells))
        return read


class FactoredBlock:
    """A `TwoWayAttentionBlock` over factored cells."""

    def __init__(self, template: Template, block: TwoWayAttentionBlock, position: Tensor) -> None:
        self.block = block
        self.token_to_image = TokenToImage(template, block.cross_attn_token_to_image, position)
        attention = block.cross_attn_image_to_token
        self.image_logits = CellLogits(template, attention.q_proj, attention.num_heads, position)
        centred = template.with_attention(attention).mapped(_centred)
        self.variance = CellVariance(centred)
        self.template = centred.with_gain_and_bias(block.norm4)
        """Of the cells that the block leaves."""

    def __call__(self, tokens: Tensor, token_pe: Tensor, cells: Cells) -> tuple[Tensor, Cells]:
        block = self.block
        tokens = block.attend_to_tokens(tokens, token_pe)
        tokens = block.norm2(tokens + self.token_to_image(tokens + token_pe, cells))
        tokens = block.norm3(tokens + block.mlp(tokens))
        return tokens, self._normed(self._attended(tokens, token_pe, cells))

    def _attended(self, tokens: Tensor, token_pe: Tensor, cells: Cells) -> Cells:
        """The image reads from the tokens: H * T columns more, as yet unscaled."""
        attention = self.block.cross_attn_image_to_token
        weights = self.image_logits(attention.k_proj(tokens + token_pe), cells).softmax(dim=2)
        columns = weights.flatten(1, 2) / cells.scale[:, None]
        values = _split_heads(attention.v_proj(tokens), attention.num_heads)
        return Cells(
            torch.cat([cells.columns, columns], dim=1), cells.scale, (*cells.values, values)
        )

    def _normed(self, cells: Cells) -> Cells:
        variance = self.variance(cells) * cells.scale.square()
        scale = cells.scale * torch.rsqrt(variance + self.block.norm4.eps)
        columns = torch.cat([cells.columns, 1 / scale[:, None]], dim=1)
        return Cells(columns, scale, cells.values)


@dataclass(frozen=True)
class Reading:
    """What prompts have read from an image; masks can be had from it."""

    predicted_iou: Tensor
    """(P, M), not clamped."""
    channel_weights: Tensor
    """(P, M, _), of the upscaled cells' channels in each mask."""
    cells: Cells


class FactoredDecoder:
    """One image's embedding, ready to be asked by many prompts.

    Made for prompts of a point or a box: columns grow with the tokens, and from ten points a prompt
    on the plain decoder is as fast. Nothing that comes out carries gradients, and all arithmetic is
    that of the weights' type, also under autocast.
    """

    def __init__(
        self, prompt_encoder: PromptEncoder, decoder: MaskDecoder, image_embedding: Tensor
    ) -> None:
        """
        Args:
            image_embedding: (1, C, h, w).
        """
        self._prompt_encoder, self._decoder = prompt_encoder, decoder
        self._size_hw = image_embedding.shape[-2:]
        with _inference(image_embedding.device):
            no_mask = prompt_encoder.no_mask_embed.weight[..., None, None]
            shared = (image_embedding + no_mask)[0].flatten(1).T
            position = prompt_encoder.dense_position_embedding()[0].flatten(1).T
            self._prepare(shared, position)

    def _prepare(self, shared: Tensor, position: Tensor) -> None:
        transformer = self._decoder.transformer
        template = Template(shared, RowMaker((), (torch.zeros_like(shared[0]),)))
        self._blocks = []
        for block in transformer.layers:
            assert isinstance(block, TwoWayAttentionBlock)
            self._blocks.append(FactoredBlock(template, block, position))
            template = self._blocks[-1].template
        self._final = TokenToImage(template, transformer.final_attn_token_to_image, position)
        first, norm, _, second, _ = self._decoder.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        self._first, self._norm, self._second = Upscaling(first), norm, Upscaling(second)
        self._upscaled = template.mapped(lambda channels: channels @ self._first.weight)

    def read(self, prompts: Prompts, *, multimask_output: bool) -> Reading:
        """Predicted IoU of P prompts of points and boxes; P may be 0.

        Raises:
            ValueError: a prompt has a mask; the cells would no longer be shared.
        """
        if prompts.mask_input is not None:
            raise ValueError("prompts with mask_input are for the plain decoder, Sam.decode")
        decoder = self._decoder
        with _inference(self._upscaled.shared.device):
            token_pe = decoder.prompt_tokens(self._prompt_encoder.embed_sparse(prompts))
            ones = token_pe.new_ones(len(token_pe), 1, self._upscaled.shared.shape[0])
            tokens, cells = token_pe, Cells(ones, ones[:, 0], ())
            for block in self._blocks:
                tokens, cells = block(tokens, token_pe, cells)
            tokens = tokens + self._final(tokens + token_pe, cells)
            tokens = decoder.transformer.norm_final_attn(tokens)
            predicted_iou, weights = decoder.predict(tokens, multimask_output=multimask_output)
        return Reading(predicted_iou, weights, cells)

    def masks(self, reading: Reading, index: Tensor) -> Tensor:
        """(n, M, S / 4, S / 4) logits of some of the prompts that were read."""
        (h, w), weights = self._size_hw, reading.channel_weights
        if len(index) == 0:
            return weights.new_zeros(0, weights.shape[1], 4 * h, 4 * w)
        at_once = max(1, CELLS_AT_ONCE // (h * w)) if index.device.type == "cpu" else len(index)
        with _inference(index.device):
            return torch.cat([self._masks(reading, some) for some in torch.split(index, at_once)])

    def _masks(self, reading: Reading, index: Tensor) -> Tensor:
        cells = reading.cells.select(index)
        template, (h, w) = self._upscaled, self._size_hw
        rows = template.rows(cells.values, len(index))
        upscaled = cells.columns.transpose(1, 2) @ rows + template.shared
        upscaled = torch.addcmul(self._first.bias, upscaled, cells.scale[..., None])
        upscaled = unflatten(upscaled, 2, (4, -1))  # the four places within each cell
        norm = self._norm
        upscaled = F.layer_norm(upscaled, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        upscaled = F.gelu(upscaled).flatten(0, 2) @ self._second.weight
        upscaled = F.gelu(upscaled.add_(self._second.bias))
        upscaled = upscaled.reshape(len(index), -1, upscaled.shape[1] // 4)
        weights = reading.channel_weights[index]
        masks = unflatten(weights @ upscaled.transpose(1, 2), 2, (h, w, 2, 2, 2, 2))
        return masks.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5, 7).flatten(2, 4)


class Upscaling:
    """A transposed convolution of kernel and stride 2, as a linear map of every cell."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        self.weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
        """(C_in, 4 * C_out)"""
        assert layer.bias is not None
        self.bias = layer.bias.repeat(4)


@contextmanager
def _inference(device: torch.device) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def _by_head(rows: Tensor, num_heads: int) -> Tensor:
    """(K, H * D) -> (H, D, K)"""
    return unflatten(rows, 1, (num_heads, -1)).permute(1, 2, 0).contiguous()


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(P, T, H * D) -> (H, P, T, D)"""
    return unflatten(tokens, 2, (num_heads, -1)).permute(2, 0, 1, 3).contiguous()
