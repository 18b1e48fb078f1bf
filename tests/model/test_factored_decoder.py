import pytest
import torch

from fakes import tiny_sam
from model.checkpoint import load_checkpoint
from model.prompt_encoder import Prompts
from model.sam import Sam, SamConfig
from model.tiny_vit import TinyViTConfig

DEEP = SamConfig(
    image_encoder=TinyViTConfig(
        embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    image_size=192,
    embed_dim=64,
    decoder_depth=3,
)


def lively(sam: Sam, seed: int = 0) -> Sam:
    """Norms and biases begin as ones and zeros, which would hide where they belong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return sam


def models() -> dict[str, Sam]:
    torch.manual_seed(0)
    return {
        "random": lively(tiny_sam(0)),
        "three blocks": lively(Sam(DEEP).eval()),
        "shipped": load_checkpoint("sa-tiny").sam.eval(),
    }


MODELS = models()


def embedding_of(sam: Sam) -> torch.Tensor:
    side = sam.config.image_size
    torch.manual_seed(1)
    with torch.inference_mode():
        return sam.encode(torch.randn(1, 3, side, side))


def points(sam: Sam, count: int, per_prompt: int = 1) -> Prompts:
    generator = torch.Generator().manual_seed(2)
    coords = torch.rand(count, per_prompt, 2, generator=generator) * sam.config.image_size
    labels = torch.randint(-1, 2, coords.shape[:2], generator=generator)
    labels[:, 0] = 1
    return Prompts(point_coords=coords, point_labels=labels)


def boxes(sam: Sam, count: int) -> Prompts:
    corners = points(sam, count, 2).point_coords
    assert corners is not None
    return Prompts(boxes=torch.cat([corners.amin(1), corners.amax(1)], dim=1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("kind", ["a point", "four points", "a box"])
def test_answers_are_those_of_the_plain_decoder(
    name: str, multimask_output: bool, kind: str
) -> None:
    sam = MODELS[name]
    prompts = boxes(sam, 9) if kind == "a box" else points(sam, 9, 1 if kind == "a point" else 4)
    embedding = embedding_of(sam)
    with torch.inference_mode():
        plain = sam.decode(embedding, prompts, multimask_output=multimask_output)
        decoder = sam.prepare(embedding)
        reading = decoder.read(prompts, multimask_output=multimask_output)
        masks = decoder.masks(reading, torch.tensor([8, 0, 5]))
    expected = plain.low_res_masks[[8, 0, 5]]
    assert (reading.predicted_iou - plain.predicted_iou).abs().max() < 2e-6
    assert (masks - expected).abs().max() / expected.abs().max() < 2e-5


def test_no_masks_of_a_reading_are_fine() -> None:
    sam = MODELS["random"]
    decoder = sam.prepare(embedding_of(sam))
    side = sam.config.low_res_size
    with torch.inference_mode():
        reading = decoder.read(points(sam, 2), multimask_output=True)
        none = torch.zeros(0, dtype=torch.long)
        assert decoder.masks(reading, none).shape == (0, 3, side, side)


def test_a_mask_prompt_is_refused() -> None:
    sam = MODELS["random"]
    side = sam.config.low_res_size
    prompts = Prompts(mask_input=torch.zeros(1, 1, side, side))
    with pytest.raises(ValueError, match="plain decoder"):
        sam.prepare(embedding_of(sam)).read(prompts, multimask_output=True)
