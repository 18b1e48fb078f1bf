"""Shapes, parameter counts and the contract of decode()."""

import pytest
import torch

from model.image_encoder import ViTConfig
from model.prompt_encoder import Prompts
from model.sam import Sam, SamConfig

torch.set_num_threads(1)


def small_config(image_size: int = 128, decoder_depth: int = 2) -> SamConfig:
    encoder = ViTConfig(embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,), window_size=3)
    return SamConfig(
        image_encoder=encoder, image_size=image_size, embed_dim=32, decoder_depth=decoder_depth
    )


def small_sam(**kwargs: int) -> Sam:
    torch.manual_seed(0)
    return Sam(small_config(**kwargs)).eval()


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "expected"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)]
)
def test_presets_have_the_parameter_counts_of_the_published_models(
    name: str, expected: int
) -> None:
    with torch.device("meta"):
        sam = Sam(SamConfig.preset(name))
    assert num_parameters(sam) == expected


def test_decoder_has_the_published_parameter_count_at_each_depth() -> None:
    two = SamConfig.preset("vit_b")
    with torch.device("meta"):
        decoders = [
            Sam(two.model_copy(update={"decoder_depth": depth})).mask_decoder for depth in (2, 3)
        ]
    assert num_parameters(decoders[0]) == 4_058_340
    assert num_parameters(decoders[1]) - num_parameters(decoders[0]) == 1_579_520


def test_unknown_preset_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"vit_x.*vit_b, vit_l, vit_h, mobile_sam"):
        SamConfig.preset("vit_x")


@pytest.mark.parametrize("image_size", [128, 176])
def test_every_size_follows_from_the_input_size(image_size: int) -> None:
    sam = small_sam(image_size=image_size)
    embeddings = sam.encode(torch.randn(2, 3, image_size, image_size))
    assert embeddings.shape == (2, 32, image_size // 16, image_size // 16)
    quarter = image_size // 4
    prompts = Prompts(
        boxes=torch.tensor([[1.0, 2.0, 30.0, 40.0]]), mask_input=torch.randn(1, 1, quarter, quarter)
    )
    prediction = sam.decode(embeddings[:1], prompts, multimask_output=True)
    assert prediction.low_res_masks.shape == (1, 3, quarter, quarter)
    assert prediction.predicted_iou.shape == (1, 3)


def test_no_prompts_give_empty_predictions() -> None:
    sam = small_sam()
    embeddings = sam.encode(torch.randn(1, 3, 128, 128))
    for prompts in (
        Prompts(boxes=torch.zeros(0, 4)),
        Prompts(torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.long)),
        Prompts(boxes=torch.zeros(0, 4), mask_input=torch.zeros(0, 1, 32, 32)),
    ):
        prediction = sam.decode(embeddings, prompts, multimask_output=True)
        assert prediction.low_res_masks.shape == (0, 3, 32, 32)
        assert prediction.predicted_iou.shape == (0, 3)


def test_prompts_of_many_images_decode_as_each_image_alone() -> None:
    sam = small_sam()
    embeddings = sam.encode(torch.randn(2, 3, 128, 128))
    coords, labels = torch.rand(3, 2, 2) * 128, torch.tensor([[1, 0], [1, 1], [0, -1]])
    index = torch.tensor([1, 0, 1])
    together = sam.decode(
        embeddings, Prompts(coords, labels), multimask_output=True, image_index=index
    )
    for row, image in enumerate(index.tolist()):
        alone = sam.decode(
            embeddings[image : image + 1],
            Prompts(coords[row : row + 1], labels[row : row + 1]),
            multimask_output=True,
        )
        torch.testing.assert_close(together.low_res_masks[row], alone.low_res_masks[0])
        torch.testing.assert_close(together.predicted_iou[row], alone.predicted_iou[0])


def test_several_images_without_image_index_are_refused() -> None:
    sam = small_sam()
    with pytest.raises(ValueError, match="2 image embeddings without image_index"):
        sam.decode(
            torch.zeros(2, 32, 8, 8), Prompts(boxes=torch.zeros(1, 4)), multimask_output=False
        )


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(64, 64\); expected \(128, 128\)"):
        small_sam().encode(torch.zeros(1, 3, 64, 64))


def test_prompts_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] rows"):
        Prompts(boxes=torch.zeros(1, 4), mask_input=torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(1, 3, 2\) and point_labels \(1, 1\)"):
        Prompts(torch.zeros(1, 3, 2), torch.ones(1, 1))


def test_global_attention_in_chunks_equals_attention_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sam, images = small_sam(), torch.randn(1, 3, 128, 128)
    for block in sam.image_encoder.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_h)
        torch.nn.init.normal_(block.attn.rel_pos_w)
    at_once = sam.encode(images)
    monkeypatch.setattr("model.image_encoder.MAX_BIAS_ELEMENTS", 3 * 2 * 8 * 64)
    torch.testing.assert_close(sam.encode(images), at_once)
