"""The mask decoder for many prompts on one image, with the image's cells kept as factors.

The plain decoder (model/mask_decoder.py) carries K x C image cells through its blocks for every
prompt, and almost all of its time goes into reading and writing them. But a block changes a cell in
two ways only: it adds attention over the prompt's few tokens, which is a matrix of rank H * T, and
it normalises the cell. So for every prompt

    cells = scale * (shared + columns.T @ rows)

holds exactly. `shared` (K, C) is the image's, the same for all prompts; `scale` (K,) is the product
of the norms' inverse deviations; `columns` (R, K) are attention weights, and a few more for the
norms' means and biases; `rows` (R, C) are linear in the tokens' values. A linear layer on top goes
through the sum: it is applied to `shared` once per image, and to the rows once per prompt. The
cells themselves are never written down: not for the attention that reads them, not for the mean and
variance of the next norm, not for the first upscaling layer.

Only the rounding differs from the plain decoder; tests/model/test_factored_decoder.py holds the two
together. Masks are a step of their own: predicted IoU does not need them, and refuses most prompts.

Axes: P prompts, T tokens, C channels, K cells (h * w), H heads of width D, R rows, N projected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn, unflatten

from model.layers import LayerNorm2d
from model.mask_decoder import MaskDecoder
from model.prompt_encoder import PromptEncoder, Prompts
from model.two_way_transformer import Attention, TwoWayAttentionBlock

CELLS_AT_ONCE = 2304
"""Upscaled cells of a few prompts fit the cache of a CPU core; those of many do not."""


@dataclass(frozen=True)
class Template:
    """What the cells of all prompts have in common at one place of the decoder.

    A prompt's rows are, in order: a constant one, then for each block so far the H * T that its
    tokens' values make, and two constants.
    """

    shared: Tensor
    """(K, N)"""
    from_values: tuple[Tensor, ...]
    """(H, D, N) for each block so far: from a token's value to its row."""
    constants: Tensor
    """(1 + 2 * blocks, N)"""

    def times(self, matrix: Tensor) -> "Template":
        """The same cells after a linear map: (N, M), or (N,) for a diagonal one."""

        def mapped(x: Tensor) -> Tensor:
            return x * matrix if matrix.ndim == 1 else x @ matrix

        return Template(
            mapped(self.shared),
            tuple(mapped(block) for block in self.from_values),
            mapped(self.constants),
        )

    def with_attention(self, attention: Attention) -> "Template":
        """Attention over tokens is added. Its bias joins the last constant, that of a bias too."""
        rows = unflatten(attention.out_proj.weight.T, 0, (attention.num_heads, -1))
        last = self.constants[-1:] + attention.out_proj.bias
        constants = torch.cat([self.constants[:-1], last])
        return Template(self.shared, (*self.from_values, rows), constants)

    def with_norm(self, norm: nn.LayerNorm) -> "Template":
        """Two more constants: every channel loses the mean, and gains its bias after the gain."""
        ones = torch.ones_like(norm.weight)[None]
        centred = replace(self, constants=torch.cat([self.constants, ones])).times(norm.weight)
        return replace(centred, constants=torch.cat([centred.constants, norm.bias[None]]))

    def rows(self, values: Sequence[Tensor], num_prompts: int) -> Tensor:
        """(P, R, N) rows of these prompts, from the tokens' values (H, P * T, D) in each block."""
        constants = self.constants.expand(num_prompts, -1, -1)
        pieces = [constants[:, :1]]
        for index, (matrix, value) in enumerate(zip(self.from_values, values, strict=True)):
            rows = unflatten(value @ matrix, 1, (num_prompts, -1))
            pieces += [rows.transpose(0, 1).flatten(1, 2)]
            pieces += [constants[:, 1 + 2 * index : 3 + 2 * index]]
        return torch.cat(pieces, dim=1)


@dataclass(frozen=True)
class Cells:
    """The image's cells as P prompts have changed them: scale * (shared + columns.T @ rows)."""

    columns: Tensor
    """(P, R, K)"""
    scale: Tensor
    """(P, K)"""
    values: tuple[Tensor, ...]
    """(H, P * T, D) of the tokens in each block so far; `Template.rows` makes rows of them."""

    def select(self, index: Tensor) -> "Cells":
        """The cells of these prompts."""
        values = tuple(
            unflatten(value, 1, (len(self.scale), -1))[:, index].flatten(1, 2)
            for value in self.values
        )
        return Cells(self.columns[index], self.scale[index], values)


class Readout:
    """One of an attention's linear layers over the cells, head by head."""

    def __init__(self, template: Template, layer: nn.Linear, heads: int) -> None:
        self.heads = heads
        self.template = template.times(layer.weight.T)
        self.bias = unflatten(layer.bias, 0, (heads, 1, -1))
        self.shared = by_head(self.template.shared, heads)

    def rows(self, cells: Cells) -> Tensor:
        """(P, H, R, D)"""
        rows = self.template.rows(cells.values, len(cells.scale))
        return unflatten(rows, 2, (self.heads, -1)).transpose(1, 2)


class Comparison(Readout):
    """How alike tokens and cells are, where cells come with their positions."""

    def __init__(self, template: Template, layer: nn.Linear, heads: int, position: Tensor) -> None:
        super().__init__(template, layer, heads)
        # No norm has scaled the positions, so they stay apart from the cells.
        self.position = by_head(position @ layer.weight.T, heads)

    def __call__(self, tokens: Tensor, cells: Cells) -> Tensor:
        """Attention logits (P, H, T, K) of tokens (P, T, N)."""
        P = len(tokens)
        heads = by_head_and_token(tokens, self.heads) * self.shared.shape[1] ** -0.5
        per_prompt = unflatten(heads, 1, (P, -1)).transpose(0, 1)
        weights = per_prompt @ self.rows(cells).transpose(2, 3)
        logits = unflatten(weights.flatten(1, 2) @ cells.columns, 1, weights.shape[1:3])
        logits += unflatten(heads @ self.shared, 1, (P, -1)).transpose(0, 1)
        logits *= cells.scale[:, None, None]
        logits += unflatten(heads @ self.position, 1, (P, -1)).transpose(0, 1)
        logits += (per_prompt * self.bias).sum(-1, keepdim=True)
        return logits


class Gathering(Readout):
    """Weighted sums of the cells."""

    def __init__(self, template: Template, layer: nn.Linear, heads: int) -> None:
        super().__init__(template, layer, heads)
        self.shared = self.shared.transpose(1, 2).contiguous()

    def __call__(self, weights: Tensor, cells: Cells) -> Tensor:
        """(P, T, N) from weights (P, H, T, K), which are overwritten."""
        P, H, T, _ = weights.shape
        weights *= cells.scale[:, None, None]
        shared = weights.transpose(0, 1).flatten(1, 2) @ self.shared
        over_rows = unflatten(weights.flatten(1, 2) @ cells.columns.transpose(1, 2), 1, (H, T))
        gathered = unflatten(shared, 1, (P, T)).transpose(0, 1) + over_rows @ self.rows(cells)
        return (gathered + self.bias).transpose(1, 2).flatten(2)


class Moments:
    """Mean and variance of every cell over its channels, from the factors alone."""

    def __init__(self, template: Template) -> None:
        C = template.shared.shape[1]
        self.rows = template.times(torch.full_like(template.shared[0], C**-0.5))
        self.mean = template.times(torch.full_like(template.shared[:1].T, 1 / C))
        self.square = self.rows.shared.square().sum(1)
        # Twice the products of the shared cells with what every row is made of.
        shared = 2 * self.rows.shared.T
        self.with_values = tuple(block @ shared for block in self.rows.from_values)
        self.with_constants = self.rows.constants @ shared

    def __call__(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """(P, K) each, both without the scale."""
        P = len(cells.scale)
        mean = self.mean.rows(cells.values, P).transpose(1, 2) @ cells.columns
        mean = mean[:, 0] + self.mean.shared[:, 0]
        rows = self.rows.rows(cells.values, P)
        products = (rows @ rows.transpose(1, 2)) @ cells.columns
        products[:, :1] += self.with_constants[:1]
        start = 1
        for index, (matrix, value) in enumerate(zip(self.with_values, cells.values, strict=True)):
            with_shared = unflatten(value @ matrix, 1, (P, -1)).transpose(0, 1)
            stop = start + with_shared.shape[1] * with_shared.shape[2]
            unflatten(products[:, start:stop], 1, with_shared.shape[1:3]).add_(with_shared)
            constants = self.with_constants[1 + 2 * index : 3 + 2 * index]
            products[:, stop : stop + len(constants)] += constants
            start = stop + len(constants)
        square = (products.mul_(cells.columns)).sum(1) + self.square
        return mean, (square - mean.square()).clamp(min=0)


class TokenToImage:
    """An attention by which tokens read from factored cells."""

    def __init__(self, template: Template, attention: Attention, position: Tensor) -> None:
        self.attention = attention
        heads = attention.num_heads
        self.keys = Comparison(template, attention.k_proj, heads, position)
        self.values = Gathering(template, attention.v_proj, heads)

    def __call__(self, queries: Tensor, cells: Cells) -> Tensor:
        """(P, T, C), what the queries (P, T, C) gather."""
        weights = self.keys(self.attention.q_proj(queries), cells).softmax(dim=-1)
        gathered: Tensor = self.attention.out_proj(self.values(weights, cells))
        return gathered


class FactoredBlock:
    """A `TwoWayAttentionBlock` over factored cells."""

    def __init__(self, template: Template, block: TwoWayAttentionBlock, position: Tensor) -> None:
        self.block = block
        self.token_to_image = TokenToImage(template, block.cross_attn_token_to_image, position)
        attention = block.cross_attn_image_to_token
        self.image_queries = Comparison(template, attention.q_proj, attention.num_heads, position)
        attended = template.with_attention(attention)
        self.moments = Moments(attended)
        self.template = attended.with_norm(block.norm4)
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
        weights = self.image_queries(attention.k_proj(tokens + token_pe), cells).softmax(dim=2)
        columns = weights.flatten(1, 2) / cells.scale[:, None]
        values = by_head_and_token(attention.v_proj(tokens), attention.num_heads)
        return Cells(
            torch.cat([cells.columns, columns], dim=1), cells.scale, (*cells.values, values)
        )

    def _normed(self, cells: Cells) -> Cells:
        mean, variance = self.moments(cells)
        eps = self.block.norm4.eps
        scale = cells.scale * torch.rsqrt(variance * cells.scale.square() + eps)
        columns = torch.cat([cells.columns, -mean[:, None], 1 / scale[:, None]], dim=1)
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
    """One image's embedding, ready to be asked by many prompts. For inference only."""

    def __init__(
        self, prompt_encoder: PromptEncoder, decoder: MaskDecoder, image_embedding: Tensor
    ) -> None:
        """
        Args:
            image_embedding: (1, C, h, w).
        """
        self._prompt_encoder, self._decoder = prompt_encoder, decoder
        self._size_hw = image_embedding.shape[-2:]
        no_mask = prompt_encoder.no_mask_embed.weight[..., None, None]
        shared = (image_embedding + no_mask)[0].flatten(1).T
        position = prompt_encoder.dense_position_embedding()[0].flatten(1).T
        template = Template(shared, (), torch.zeros_like(shared[:1]))
        self._blocks = []
        for block in decoder.transformer.layers:
            assert isinstance(block, TwoWayAttentionBlock)
            self._blocks.append(FactoredBlock(template, block, position))
            template = self._blocks[-1].template
        self._final = TokenToImage(
            template, decoder.transformer.final_attn_token_to_image, position
        )
        first, norm, _, second, _ = decoder.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        self._first, self._norm, self._second = Upscaling(first), norm, Upscaling(second)
        self._upscaled = template.times(self._first.weight)

    def read(self, prompts: Prompts, *, multimask_output: bool) -> Reading:
        """Predicted IoU of P prompts of points and boxes, P at least 1.

        Raises:
            ValueError: a prompt has a mask; the cells would no longer be shared.
        """
        if prompts.mask_input is not None:
            raise ValueError("prompts with mask_input are for the plain decoder, Sam.decode")
        decoder = self._decoder
        sparse = self._prompt_encoder.embed_sparse(prompts)
        token_pe = decoder.prompt_tokens(sparse)
        P, K = len(sparse), self._upscaled.shared.shape[0]
        ones = token_pe.new_ones(P, 1, K)
        tokens, cells = token_pe, Cells(ones, ones[:, 0], ())
        for block in self._blocks:
            tokens, cells = block(tokens, token_pe, cells)
        tokens = tokens + self._final(tokens + token_pe, cells)
        tokens = decoder.transformer.norm_final_attn(tokens)
        predicted_iou, weights = decoder.predict(tokens, multimask_output=multimask_output)
        return Reading(predicted_iou, weights, cells)

    def masks(self, reading: Reading, index: Tensor) -> Tensor:
        """(n, M, S / 4, S / 4) logits of some of the prompts that were read."""
        if len(index) == 0:
            (h, w), weights = self._size_hw, reading.channel_weights
            return weights.new_zeros(0, weights.shape[1], 4 * h, 4 * w)
        at_once = len(index)
        if index.device.type == "cpu":
            at_once = max(1, CELLS_AT_ONCE // reading.cells.columns.shape[2])
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


def by_head(rows: Tensor, heads: int) -> Tensor:
    """(K, H * D) -> (H, D, K)"""
    return unflatten(rows, 1, (heads, -1)).permute(1, 2, 0).contiguous()


def by_head_and_token(tokens: Tensor, heads: int) -> Tensor:
    """(P, T, H * D) -> (H, P * T, D)"""
    return unflatten(tokens.flatten(0, 1), 1, (heads, -1)).transpose(0, 1).contiguous()
