"""TinyViT has MobileSAM's layout, and takes inputs of any size."""

import pytest
import torch
from torch import nn

from model.tiny_vit import (
    TinyViT,
    TinyViTConfig,
    fit_attention_biases,
    join_windows,
    split_windows,
)

SMALL = TinyViTConfig(
    embed_dims=(8, 16, 16, 32),
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 4),
    window_sizes=(7, 7, 7, 7),
)

OFFICIAL_SHAPES = {
    "patch_embed.seq.0.c.weight": (32, 3, 3, 3),
    "patch_embed.seq.0.bn.running_mean": (32,),
    "patch_embed.seq.2.c.weight": (64, 32, 3, 3),
    "layers.0.blocks.0.conv1.c.weight": (256, 64, 1, 1),
    "layers.0.blocks.0.conv2.c.weight": (256, 1, 3, 3),
    "layers.0.blocks.1.conv3.bn.weight": (64,),
    "layers.0.downsample.conv1.c.weight": (128, 64, 1, 1),
    "layers.0.downsample.conv2.c.weight": (128, 1, 3, 3),
    "layers.0.downsample.conv3.bn.num_batches_tracked": (),
    "layers.1.blocks.0.attn.attention_biases": (4, 49),
    "layers.1.blocks.0.attn.norm.weight": (128,),
    "layers.1.blocks.0.attn.qkv.weight": (384, 128),
    "layers.1.blocks.1.attn.proj.bias": (128,),
    "layers.1.blocks.1.mlp.norm.bias": (128,),
    "layers.1.blocks.1.mlp.fc1.weight": (512, 128),
    "layers.1.blocks.1.mlp.fc2.bias": (128,),
    "layers.1.blocks.1.local_conv.c.weight": (128, 1, 3, 3),
    "layers.1.downsample.conv1.c.weight": (160, 128, 1, 1),
    "layers.2.blocks.5.attn.attention_biases": (5, 196),
    "layers.2.blocks.5.local_conv.bn.running_var": (160,),
    "layers.2.downsample.conv3.c.weight": (320, 320, 1, 1),
    "layers.3.blocks.0.attn.attention_biases": (10, 49),
    "layers.3.blocks.1.mlp.fc1.weight": (1280, 320),
    "norm_head.weight": (320,),
    "head.weight": (1000, 320),
    "head.bias": (1000,),
    "neck.0.weight": (256, 320, 1, 1),
    "neck.1.weight": (256,),
    "neck.2.weight": (256, 256, 3, 3),
    "neck.3.bias": (256,),
}


def test_parameters_carry_the_official_names_and_shapes() -> None:
    state = TinyViT(TinyViTConfig(num_classes=1000)).state_dict()
    found = {name: tuple(state[name].shape) for name in OFFICIAL_SHAPES if name in state}
    assert found == OFFICIAL_SHAPES


def test_official_layout_has_six_million_parameters() -> None:
    encoder = TinyViT(TinyViTConfig(num_classes=1000))
    assert sum(p.numel() for p in encoder.parameters()) == 6_065_532


def test_nothing_but_the_parameters_is_stored() -> None:
    names = TinyViT(SMALL).state_dict()
    assert not any("attention_bias_idxs" in name for name in names)


@pytest.mark.parametrize("size", [64, 96, 112, 320])
def test_embedding_lies_at_stride_16_for_every_input_size(size: int) -> None:
    encoder = TinyViT(SMALL, out_channels=24).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, size, size)).shape == (1, 24, size // 16, size // 16)


def test_stages_are_what_the_neck_is_made_from() -> None:
    encoder = TinyViT(SMALL).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stages = encoder.stages(images)
        assert [stage.shape[1:] for stage in stages] == [
            (8, 16, 16),
            (16, 8, 8),
            (16, 4, 4),
            (32, 4, 4),
        ]
        assert torch.equal(encoder(images), encoder.neck(stages[-1]))


def test_windows_that_do_not_fit_are_padded_and_cut_off_again() -> None:
    tokens = torch.randn(2, 10, 8, 3)
    windows = split_windows(tokens, 7)
    assert windows.shape == (2 * 2 * 2, 49, 3)
    assert torch.equal(join_windows(windows, 7, (10, 8)), tokens)
    assert windows.sum() == pytest.approx(tokens.sum().item(), abs=1e-3)


def test_attention_does_not_leave_its_window() -> None:
    block = TinyViT(SMALL).layers[1].blocks[0].eval()
    x = torch.randn(1, 16, 14, 14)
    changed = x.clone()
    changed[..., 13, 13] += 1
    with torch.no_grad():
        difference = block.attn(split_windows(x.permute(0, 2, 3, 1), 7)) - block.attn(
            split_windows(changed.permute(0, 2, 3, 1), 7)
        )
    assert difference[:3].abs().max() == 0
    assert difference[3].abs().max() > 0


def test_attention_is_biased_by_distance_alone() -> None:
    attention = TinyViT(SMALL).layers[1].blocks[0].attn
    nn.init.normal_(attention.attention_biases)
    bias = attention.attention_biases[:, attention.attention_bias_idxs].view(2, 7, 7, 7, 7)
    assert torch.equal(bias[:, 0, 0, 2, 3], bias[:, 4, 6, 6, 3])
    assert torch.equal(bias[:, 1, 1, 2, 3], attention.attention_biases[:, 1 * 7 + 2])


def test_attention_answers_the_same_while_its_bias_learns() -> None:
    attention = TinyViT(SMALL).layers[1].blocks[0].attn
    nn.init.normal_(attention.attention_biases)
    x = torch.randn(3, 49, 16)
    with torch.no_grad():
        fused = attention(x)
    assert torch.allclose(attention(x), fused, atol=1e-5)


def test_gradients_reach_every_parameter_that_learns() -> None:
    encoder = TinyViT(SMALL).train()
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    silent = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


def test_unused_classifier_does_not_learn() -> None:
    encoder = TinyViT(SMALL.model_copy(update={"num_classes": 10}))
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}


def test_widths_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 3"):
        TinyViTConfig(num_heads=(2, 3, 5, 10))


def test_biases_fit_a_window_of_more_cells_for_the_same_part_of_the_image() -> None:
    """A bias linear in the distance stays linear, from no distance to the whole window."""
    coarse = TinyViT(SMALL)
    fine = TinyViT(SMALL.model_copy(update={"window_sizes": (7, 7, 7, 13)}))
    steps = torch.arange(7.0)
    slopes = torch.tensor([1.0, -2.0, 0.5, 0.0])
    learned = slopes[:, None, None] * (steps[:, None] + 2 * steps)
    state = coarse.state_dict()
    state["layers.3.blocks.0.attn.attention_biases"] = learned.flatten(1)
    fitted = fit_attention_biases(state, fine.state_dict())
    halves = torch.arange(13.0) / 2
    expected = slopes[:, None, None] * (halves[:, None] + 2 * halves)
    found = fitted["layers.3.blocks.0.attn.attention_biases"]
    assert torch.allclose(found, expected.flatten(1), atol=1e-5)
    fine.load_state_dict(fitted)
    assert torch.equal(fine.state_dict()["neck.0.weight"], state["neck.0.weight"])
