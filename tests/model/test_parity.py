"""Ours against transformers' Segment Anything: equal weights must give equal numbers.

Random weights are carried from our names to theirs; nothing is downloaded. The models are small,
but of every kind: windowed blocks with padding, global blocks, relative positions, deep decoder.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from benchmarks.transformers_names import renamed, their_config
from model.image_encoder import ViTConfig
from model.prompt_encoder import Prompts
from model.sam import Sam, SamConfig

S, C, P = 160, 64, 5


@dataclass(frozen=True)
class Pair:
    ours: Sam
    theirs: SamModel


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    encoder = ViTConfig(
        embed_dim=48, depth=4, num_heads=3, global_attn_indexes=(1, 3), window_size=4
    )
    ours = Sam(SamConfig(image_encoder=encoder, image_size=S, embed_dim=C, decoder_depth=3)).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            # Away from 0 and 1, so that no bias, norm or relative position could go unnoticed.
            if parameter.ndim == 1 or "rel_pos" in name or "pos_embed" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    # Their own arithmetic, not the fused attention of torch that ours calls as well.
    theirs = SamModel(their_config(ours.config, attn_implementation="eager")).eval()
    theirs.load_state_dict(renamed(ours.state_dict()))
    return Pair(ours, theirs)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


def make_prompts(kind: str) -> Prompts:
    generator = torch.Generator().manual_seed(1)
    coords = torch.rand(P, 3, 2, generator=generator) * S
    labels = torch.tensor([[1, 0, -1], [1, -1, -1], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    corners = torch.rand(P, 2, 2, generator=generator).sort(dim=1).values * S
    masks = torch.randn(P, 1, S // 4, S // 4, generator=generator) * 10
    return Prompts(
        point_coords=coords if "points" in kind else None,
        point_labels=labels if "points" in kind else None,
        boxes=corners.flatten(1) if "boxes" in kind else None,
        mask_input=masks if "masks" in kind else None,
    )


KINDS = ["points", "boxes", "points and boxes", "points and masks", "boxes and masks", "masks"]


@torch.no_grad()
def test_image_encoders_agree(pair: Pair) -> None:
    images = torch.randn(2, 3, S, S, generator=torch.Generator().manual_seed(2))
    theirs = pair.theirs.vision_encoder(images).last_hidden_state
    assert relative_error(pair.ours.encode(images), theirs) < 1e-4


@torch.no_grad()
def test_dense_positions_agree(pair: Pair) -> None:
    theirs = pair.theirs.get_image_wide_positional_embeddings()
    assert relative_error(pair.ours.prompt_encoder.dense_position_embedding(), theirs) < 1e-4


def their_prompt_inputs(prompts: Prompts) -> dict[str, Tensor | None]:
    """One prompt for each of P images: theirs takes masks in no other way."""
    coords, labels, boxes = prompts.point_coords, prompts.point_labels, prompts.boxes
    return {
        "input_points": None if coords is None else coords[:, None],
        "input_labels": None if labels is None else labels[:, None],
        "input_boxes": None if boxes is None else boxes[:, None],
        "input_masks": prompts.mask_input,
    }


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_prompt_encoders_agree(pair: Pair, kind: str) -> None:
    prompts = make_prompts(kind)
    sparse, dense = pair.ours.prompt_encoder(prompts)
    their_sparse, their_dense = pair.theirs.prompt_encoder(**their_prompt_inputs(prompts))
    assert relative_error(dense, their_dense) < 1e-4
    if their_sparse is None:
        assert sparse.shape == (P, 0, C)
    else:
        assert relative_error(sparse, their_sparse[:, 0]) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_decoders_agree(pair: Pair, kind: str, multimask_output: bool) -> None:
    prompts = make_prompts(kind)
    embeddings = torch.randn(P, C, S // 16, S // 16, generator=torch.Generator().manual_seed(3))
    ours = pair.ours.decode(
        embeddings, prompts, multimask_output=multimask_output, image_index=torch.arange(P)
    )
    theirs = pair.theirs(
        image_embeddings=embeddings,
        multimask_output=multimask_output,
        **their_prompt_inputs(prompts),
    )
    assert relative_error(ours.low_res_masks, theirs.pred_masks[:, 0]) < 1e-4
    assert relative_error(ours.predicted_iou, theirs.iou_scores[:, 0]) < 1e-4
