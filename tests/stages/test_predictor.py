import numpy as np
import pytest
import torch

from fakes import tiny_sam
from model.image_encoder import ViTConfig
from model.sam import Sam, SamConfig
from stages.predictor import MASK_THRESHOLD, Predictor, embed, embed_batch

SIZE_HW = (90, 130)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    sam = tiny_sam()
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    return Predictor(sam, SIZE_HW, embed(sam, pixels))


def test_masks_are_the_upscaled_logits_cut_at_the_threshold(predictor: Predictor) -> None:
    answer = predictor.predict(((40.0, 30.0),), (1,), multimask_output=True)
    logits = predictor.transform.upscale(answer.low_res_masks)
    for mask, whole, stability in zip(answer.masks, logits, answer.stability_score, strict=True):
        assert mask.shape == SIZE_HW
        close = (whole - MASK_THRESHOLD).abs() < 1e-4  # rounding may go either way
        assert np.array_equal(mask[~close], (whole > MASK_THRESHOLD).numpy()[~close])
        inner, outer = (whole > 1).sum(), (whole > -1).sum()
        assert stability == pytest.approx(float(inner / outer) if outer else 0.0, abs=1e-3)


def test_an_ambiguous_prompt_has_three_outputs_and_any_other_has_one(predictor: Predictor) -> None:
    three = predictor.predict(((40.0, 30.0),), (1,), multimask_output=True)
    one = predictor.predict(box_xyxy=(10.0, 10.0, 60.0, 50.0), multimask_output=False)
    assert [len(answer.masks) for answer in (three, one)] == [3, 1]
    assert three.best == int(np.argmax(three.predicted_iou))


def test_every_part_of_a_prompt_changes_the_answer(predictor: Predictor) -> None:
    first = predictor.predict(((40.0, 30.0),), (1,), multimask_output=False)
    others = [
        predictor.predict(((90.0, 70.0),), (1,), multimask_output=False),
        predictor.predict(((40.0, 30.0),), (0,), multimask_output=False),
        predictor.predict(((40.0, 30.0), (90.0, 70.0)), (1, 0), multimask_output=False),
        predictor.predict(
            ((40.0, 30.0),), (1,), box_xyxy=(10.0, 10.0, 60.0, 50.0), multimask_output=False
        ),
        predictor.predict(
            ((40.0, 30.0),), (1,), mask_input=first.low_res_masks[0], multimask_output=False
        ),
    ]
    for other in others:
        assert not torch.equal(first.low_res_masks, other.low_res_masks)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((1,), r"\(1, 2, 2\) and point_labels \(1, 1\)"),
        ((), "must be given together"),
        ((1, -2), r"labels \(1, -2\); expected 1 for"),
        ((1, 2), r"labels \(1, 2\); expected 1 for"),
        ((255, 0), r"labels \(255, 0\); expected 1 for"),
    ],
)
def test_labels_are_those_of_points_and_one_for_each(
    predictor: Predictor, labels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict(((40.0, 30.0), (90.0, 70.0)), labels, multimask_output=False)


def test_the_same_question_has_the_same_answer(predictor: Predictor) -> None:
    first, again = (
        predictor.predict(((40.0, 30.0),), (1,), multimask_output=True) for _ in range(2)
    )
    assert torch.equal(first.low_res_masks, again.low_res_masks)
    assert first.predicted_iou == again.predicted_iou


def tiny_vit_b() -> Sam:
    torch.manual_seed(0)
    vit = ViTConfig(embed_dim=48, depth=2, num_heads=3, global_attn_indexes=(1,), window_size=4)
    return Sam(SamConfig(image_encoder=vit, image_size=128, embed_dim=32)).eval()


@pytest.mark.parametrize("sam", [tiny_sam(), tiny_vit_b()], ids=["TinyViT", "ViT"])
def test_images_of_different_sizes_are_embedded_together_as_alone(sam: Sam) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((9, 40), (90, 130))]
    alone = torch.cat([embed(sam, image) for image in images])
    assert torch.allclose(embed_batch(sam, images), alone, atol=1e-5)


@pytest.mark.parametrize("sam", [tiny_sam(), tiny_vit_b()], ids=["TinyViT", "ViT"])
def test_half_precision_changes_an_embedding_by_less_than_a_hundredth(sam: Sam) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    exact, half = embed_batch(sam, [pixels]), embed_batch(sam, [pixels], "bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm() / exact.norm() < 0.01
