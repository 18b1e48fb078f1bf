"""Pixel embeddings, and the joint training on top, learn from a handful of drawn squares."""

import copy
import math

import pytest
import torch
from torch import Tensor

from model.interactions import InteractionConfig
from model.joint_training import JointConfig, JointModel, JointTrainer, aim_at_prompts
from model.pretraining import (
    ClickBatch,
    PixelEmbedder,
    Pretrainer,
    PretrainingConfig,
    schedule,
    update_average,
)
from model.sam import Sam, SamConfig
from model.self_report import SelfReport
from model.tiny_vit import TinyViT, TinyViTConfig

ENCODER = TinyViTConfig(
    embed_dims=(8, 16, 16, 32),
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 4),
    window_sizes=(4, 4, 4, 4),
)
CONFIG = PretrainingConfig(steps=40, warmup_steps=2, learning_rate=3e-3, level_dim=4, pyramid_dim=8)
JOINT = JointConfig(
    steps=4,
    warmup_steps=1,
    prompts_per_image=2,
    interactions=InteractionConfig(
        num_corrections=1, num_repeats=0, pixel_loss="balanced_bce", pixel_loss_weight=1.0
    ),
)


def squares(num_images: int = 2) -> ClickBatch:
    """Each image a bright square on dark ground, each clicked once inside and once outside."""
    torch.manual_seed(0)
    images = torch.full((num_images, 3, 64, 64), -1.0) + 0.05 * torch.randn(num_images, 3, 64, 64)
    inside = torch.zeros(num_images, 16, 16, dtype=torch.bool)
    for index in range(num_images):
        images[index, :, 16:40, 8 * index : 8 * index + 24] += 2.0
        inside[index, 4:10, 2 * index : 2 * index + 6] = True
    clicks = torch.tensor([[[2 * i + 3, 7], [15, 15]] for i in range(num_images)])
    masks = torch.stack([inside, ~inside], dim=1)
    return ClickBatch(images, clicks, masks, torch.ones(num_images, 16, 16, dtype=torch.bool))


def embedder() -> PixelEmbedder:
    torch.manual_seed(1)
    return PixelEmbedder(TinyViT(ENCODER, 32), CONFIG, embed_dim=32)


def test_click_is_closest_to_itself() -> None:
    model, batch = embedder(), squares()
    _, by_pyramid, _ = model(batch.images)
    logits = model.click_logits(by_pyramid, batch.clicks)
    assert logits.shape == (2, 3, 2, 16, 16)
    x, y = batch.clicks[0, 0].tolist()
    at_click = logits[0, :, 0, y, x]
    assert torch.allclose(at_click, model.bias, atol=1e-4)
    assert (logits[0, :, 0] <= at_click[:, None, None] + 1e-4).all()


def test_padding_teaches_nothing() -> None:
    model, batch = embedder(), squares()
    _, pixels, _ = model(batch.images)
    valid = batch.valid.clone()
    valid[:, :, 12:] = False
    masks = batch.masks.clone()
    masks[..., 12:] = ~masks[..., 12:]
    first = model.click_loss(pixels, ClickBatch(batch.images, batch.clicks, batch.masks, valid))
    second = model.click_loss(pixels, ClickBatch(batch.images, batch.clicks, masks, valid))
    assert first[0].item() == pytest.approx(second[0].item(), abs=1e-6)


def test_pretraining_learns_to_tell_a_square_from_its_ground() -> None:
    trainer, batch, generator = Pretrainer(embedder(), CONFIG), squares(), torch.Generator()
    first = trainer.step(batch, generator)
    for _ in range(30):
        last = trainer.step(batch, generator)
    assert last["loss"] < 0.7 * first["loss"]
    assert last["pyramid_iou"] > 0.8


def test_restored_pretraining_goes_on_as_if_never_stopped() -> None:
    batch, generator = squares(), torch.Generator()
    trainer = Pretrainer(embedder(), CONFIG)
    trainer.step(batch, generator)
    restored = Pretrainer(embedder(), CONFIG)
    restored.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert restored.step(batch, generator) == trainer.step(batch, generator)


def test_decoder_starts_with_the_upscaling_that_pretraining_learnt() -> None:
    sam = Sam(SamConfig(image_encoder=ENCODER, image_size=64, embed_dim=32))
    pretrained, model = embedder(), JointModel(sam, CONFIG)
    model.start_from(pretrained.state_dict())
    for name, value in pretrained.upscaling.state_dict().items():
        assert torch.equal(sam.mask_decoder.output_upscaling.state_dict()[name], value)
    assert model.embedder.image_encoder is sam.image_encoder


def test_joint_step_teaches_encoder_and_decoder() -> None:
    sam = Sam(SamConfig(image_encoder=ENCODER, image_size=64, embed_dim=32))
    before = copy.deepcopy(sam.state_dict())
    trainer = JointTrainer(JointModel(sam, CONFIG), JOINT)
    figures = trainer.step(squares(), torch.Generator().manual_seed(0))
    assert {"loss", "miou_first", "miou_last", "neck_iou"} <= figures.keys()
    after = sam.state_dict()
    for name in ("image_encoder.neck.0.weight", "mask_decoder.mask_tokens.weight"):
        assert not torch.equal(before[name], after[name])


def test_corrections_follow_in_every_nth_step_only() -> None:
    model = JointModel(Sam(SamConfig(image_encoder=ENCODER, image_size=64, embed_dim=32)), CONFIG)
    asked: list[Tensor | None] = []
    prompt_encoder = model.sam.prompt_encoder
    prompt_encoder.register_forward_pre_hook(lambda _, given: asked.append(given[0].mask_input))
    interactions = JOINT.interactions.model_copy(update={"box_probability": 0.0})
    config = JOINT.model_copy(update={"correct_every": 3, "interactions": interactions})
    trainer = JointTrainer(model, config)
    for answers in (2, 1, 1, 2):
        asked.clear()
        trainer.step(squares(), torch.Generator().manual_seed(0))
        assert [mask is not None for mask in asked] == [False, True][:answers]


def test_decoder_leaves_the_encoder_alone_in_its_first_steps() -> None:
    torch.manual_seed(0)
    sam = Sam(SamConfig(image_encoder=ENCODER, image_size=64, embed_dim=32))
    alone = JOINT.model_copy(
        update={"frozen_steps": 10, "embedding_weight": 0.0, "weight_decay": 0.0}
    )
    weight = sam.image_encoder.get_parameter("neck.0.weight").detach().clone()
    JointTrainer(JointModel(sam, CONFIG), alone).step(squares(), torch.Generator())
    assert torch.equal(sam.image_encoder.get_parameter("neck.0.weight"), weight)


def changed_by(config: JointConfig) -> set[str]:
    """Names of the parameters, and statistics of norms, that one step changes."""
    torch.manual_seed(0)
    sam = Sam(SamConfig(image_encoder=ENCODER, image_size=64, embed_dim=32))
    before = copy.deepcopy(sam.state_dict())
    JointTrainer(JointModel(sam, CONFIG), config).step(squares(), torch.Generator().manual_seed(0))
    after = sam.state_dict()
    return {name for name, value in after.items() if not torch.equal(before[name], value)}


def test_without_prompts_only_the_encoder_learns() -> None:
    config = JOINT.model_copy(update={"prompts_per_image": 0, "weight_decay": 0.0})
    assert all(name.startswith("image_encoder.") for name in changed_by(config))


def test_pixel_embeddings_of_no_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelEmbedder, "forward", None)
    changed = changed_by(JOINT.model_copy(update={"embedding_weight": 0.0}))
    assert {"image_encoder.neck.0.weight", "mask_decoder.mask_tokens.weight"} <= changed


def test_self_report_is_of_the_area_and_the_stability_of_the_outputs_asked_for() -> None:
    logits = torch.full((1, 3, 8, 8), -2.0)
    logits[0, 0, :4] = 2.0  # 32 cells, 16 of them padding, steady
    logits[0, 1, :4] = 0.5  # as large, and gone at a threshold of 1
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[:, :, 4:] = False
    report = SelfReport(embed_dim=2, num_mask_tokens=4)
    with torch.no_grad():
        report.linear.weight.zero_()
        size = math.log((16 + 8) / 8) / math.log(64 / 8)
        right = [[9.0, 9.0], [size, 1.0], [size, 0.0], [0.0, 0.0]]  # the first is not asked for
        report.linear.bias.copy_(torch.tensor(right).flatten())
    assert report.loss(torch.ones(1, 2), logits, valid).item() == pytest.approx(0)
    assert report.loss(torch.ones(1, 2), logits[:, :1], valid).item() > 1


def test_self_report_teaches_the_iou_token() -> None:
    interactions = JOINT.interactions.model_copy(update={"iou_loss_weight": 0.0})
    silent = JOINT.model_copy(update={"weight_decay": 0.0, "interactions": interactions})
    reported = interactions.model_copy(update={"self_report_weight": 1.0})
    assert "mask_decoder.iou_prediction_head.layers.0.weight" not in changed_by(silent)
    losses = []
    torch.manual_seed(0)
    model = JointModel(Sam(SamConfig(image_encoder=ENCODER, image_size=64, embed_dim=32)), CONFIG)
    trainer = JointTrainer(
        model, silent.model_copy(update={"interactions": reported, "steps": 30, "final_share": 1.0})
    )
    for step in range(30):
        figures = trainer.step(squares(), torch.Generator().manual_seed(step))
        losses.append(figures["report_loss"])
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_average_follows_weights_and_norm_statistics() -> None:
    current, averaged = embedder(), embedder()
    with torch.no_grad():
        current.bias.add_(1.0)
    statistics = current.image_encoder.get_buffer("patch_embed.seq.0.bn.running_mean")
    statistics.add_(2.0)
    update_average(averaged, current, 0.75)
    assert averaged.bias.tolist() == pytest.approx([1.25] * 3)
    found = averaged.image_encoder.get_buffer("patch_embed.seq.0.bn.running_mean")
    assert found.tolist() == pytest.approx([0.5] * 4)


def test_schedule_rises_then_falls_to_its_end() -> None:
    rates = [schedule(step, steps=100, warmup_steps=10, final_share=0.3) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.3)


def test_aimed_decoder_looks_where_it_was_clicked() -> None:
    torch.manual_seed(0)
    sam = Sam(SamConfig(image_encoder=ENCODER, image_size=128, embed_dim=128))
    aim_at_prompts(sam)
    attention = sam.mask_decoder.transformer.final_attn_token_to_image
    positions = sam.prompt_encoder.dense_position_embedding()[0].flatten(1).T
    with torch.no_grad():
        q, k = (
            projection(positions).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj)
        )
        logits = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5)[-1]
    found = logits.argmax(dim=1)
    y, x = torch.arange(64) // 8, torch.arange(64) % 8
    distance = torch.maximum((found // 8 - y).abs(), (found % 8 - x).abs())
    assert distance.float().mean() < 1.0
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= 1
    assert (logits.softmax(1) * near).sum(1).mean() > 2 * near.float().mean()
