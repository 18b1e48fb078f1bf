import pytest
import torch

from fakes import tiny_sam
from model.checkpoint import load_checkpoint
from model.prompt_encoder import Prompts
from model.sam import Sam, SamConfig
from model.tiny_vit import TinyViTConfig

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def deep_sam(decoder_depth: int) -> Sam:
    torch.manual_seed(0)
    encoder = TinyViTConfig(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
    config = SamConfig(
        image_encoder=encoder, image_size=192, embed_dim=64, decoder_depth=decoder_depth
    )
    return Sam(config).eval()


def lively(sam: Sam) -> Sam:
    """Norms and biases begin as ones and zeros, which would hide where they belong."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return sam


@pytest.fixture(scope="module", params=["one block", "two blocks", "three blocks", "shipped"])
def sam(request: pytest.FixtureRequest) -> Sam:
    if request.param == "shipped":
        return load_checkpoint("sa-tiny").sam.eval()
    return lively(deep_sam(["one block", "two blocks", "three blocks"].index(request.param) + 1))


def embedding_of(sam: Sam) -> torch.Tensor:
    side = sam.config.embedding_size
    return torch.randn(
        1, sam.config.embed_dim, side, side, generator=torch.Generator().manual_seed(1)
    )


def points(sam: Sam, count: int, per_prompt: int = 1) -> Prompts:
    generator = torch.Generator().manual_seed(2)
    coords = torch.rand(count, per_prompt, 2, generator=generator) * sam.config.image_size
    labels = torch.randint(-1, 2, coords.shape[:2], generator=generator)
    labels[:, 0] = 1
    return Prompts(point_coords=coords, point_labels=labels)


def prompts_of(sam: Sam, kind: str, count: int = 9) -> Prompts:
    corners = points(sam, count, 2).point_coords
    assert corners is not None
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    if kind == "a box":
        return Prompts(boxes=boxes)
    asked = points(sam, count, 4 if kind == "four points" else 1)
    if kind == "a point and a box":
        return Prompts(asked.point_coords, asked.point_labels, boxes)
    return asked


def moved(prompts: Prompts, device: str) -> Prompts:
    given = (prompts.point_coords, prompts.point_labels, prompts.boxes)
    coords, labels, boxes = (None if x is None else x.to(device) for x in given)
    return Prompts(coords, labels, boxes)


def differences(
    sam: Sam, embedding: torch.Tensor, prompts: Prompts, *, multimask_output: bool = True
) -> tuple[float, float]:
    """Largest ones between fast and plain: of predicted IoU, and of logits by the largest logit."""
    index = torch.tensor([8, 0, 5], device=embedding.device)
    with torch.inference_mode():
        plain = sam.decode(embedding, prompts, multimask_output=multimask_output)
    decoder = sam.prepare(embedding)
    reading = decoder.read(prompts, multimask_output=multimask_output)
    masks, expected = decoder.masks(reading, index), plain.low_res_masks[index]
    return (
        (reading.predicted_iou - plain.predicted_iou).abs().max().item(),
        ((masks - expected).abs().max() / expected.abs().max()).item(),
    )


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("kind", ["a point", "four points", "a box", "a point and a box"])
def test_answers_are_exactly_those_of_the_plain_decoder(
    sam: Sam, multimask_output: bool, kind: str
) -> None:
    """In double precision, where no difference of formulas could hide behind rounding."""
    sam.double()
    try:
        found = differences(
            sam,
            embedding_of(sam).double(),
            prompts_of(sam, kind),
            multimask_output=multimask_output,
        )
    finally:
        sam.float()
    assert max(found) < 1e-11


@pytest.mark.parametrize("device", DEVICES)
def test_in_single_precision_only_rounding_differs(sam: Sam, device: str) -> None:
    moved_sam = sam.to(device)
    try:
        found = differences(
            moved_sam, embedding_of(sam).to(device), moved(prompts_of(sam, "a point"), device)
        )
    finally:
        sam.to("cpu")
    assert found[0] < 2e-6
    assert found[1] < 2e-5


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_a_mean_far_from_zero_costs_no_precision(sam: Sam, offset: float) -> None:
    found = differences(sam, embedding_of(sam) + offset, prompts_of(sam, "a point"))
    assert found[0] < 1e-5
    assert found[1] < 1e-4


def test_autocast_and_gradients_stay_outside(sam: Sam) -> None:
    prompts = prompts_of(sam, "a point")
    expected = sam.prepare(embedding_of(sam)).read(prompts, multimask_output=True)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = sam.prepare(embedding_of(sam))
        reading = decoder.read(prompts, multimask_output=True)
        masks = decoder.masks(reading, torch.tensor([0]))
    assert torch.equal(reading.predicted_iou, expected.predicted_iou)
    assert masks.dtype == torch.float32
    assert not masks.requires_grad


def test_nothing_asked_is_nothing_answered() -> None:
    sam = tiny_sam()
    decoder, side = sam.prepare(torch.randn(1, 32, 8, 8)), sam.config.low_res_size
    nothing = decoder.read(points(sam, 0), multimask_output=True)
    assert nothing.predicted_iou.shape == (0, 3)
    reading = decoder.read(points(sam, 2), multimask_output=True)
    assert decoder.masks(reading, torch.zeros(0, dtype=torch.long)).shape == (0, 3, side, side)


def test_a_mask_prompt_is_refused() -> None:
    sam = tiny_sam()
    side = sam.config.low_res_size
    prompts = Prompts(mask_input=torch.zeros(1, 1, side, side))
    with pytest.raises(ValueError, match="plain decoder"):
        sam.prepare(torch.randn(1, 32, 8, 8)).read(prompts, multimask_output=True)
