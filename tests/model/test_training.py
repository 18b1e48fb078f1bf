"""The training: what it asks, what it learns, and that it can be interrupted."""

import io
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from model import interactions
from model.image_encoder import ViTConfig
from model.interactions import Targets, backward_interactions
from model.mask_decoder import MaskPrediction
from model.optimizer import (
    average_gradients,
    build_optimizer,
    scheduled_learning_rate,
    set_drop_path,
)
from model.prompt_encoder import Prompts
from model.sam import PRESETS, Sam, SamConfig
from model.tiny_vit import TinyViTConfig
from model.training import Trainer, TrainingBatch, TrainingConfig

torch.set_num_threads(1)

SIZE = 64
SHORT = TrainingConfig(
    num_corrections=1, num_repeats=1, warmup_steps=0, learning_rate=2e-3, drop_path=0.5
)


def tiny_sam(dim: int = 16) -> Sam:
    torch.manual_seed(0)
    encoder = ViTConfig(
        embed_dim=dim, depth=3, num_heads=2, global_attn_indexes=(2,), window_size=3
    )
    return Sam(SamConfig(image_encoder=encoder, image_size=SIZE, embed_dim=dim))


def make_batch(seed: int = 0, num_images: int = 2) -> TrainingBatch:
    """Two bright rectangles on each dark image, the lower eighth of the square is padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(num_images, 3, SIZE, SIZE)
    masks = torch.zeros(num_images, 2, SIZE, SIZE, dtype=torch.bool)
    valid = torch.ones(num_images, SIZE, SIZE, dtype=torch.bool)
    valid[:, SIZE * 7 // 8 :] = False
    for image in range(num_images):
        for index, left in enumerate((0, SIZE // 2)):
            x, y = torch.randint(0, 8, (2,), generator=generator).tolist()
            masks[image, index, y : y + 36, left + x : left + x + 20] = True
            images[image, :, masks[image, index]] = 2.0
    return TrainingBatch(
        masks=masks.flatten(0, 1),
        image_index=torch.arange(num_images).repeat_interleave(2),
        valid=valid,
        images=images,
        embeddings=torch.randn(num_images, 16, 4, 4, generator=generator),
    )


def weights(sam: Sam) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sam.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Prompts, bool]]:
    """Every question the training puts to the decoder."""
    questions: list[tuple[Prompts, bool]] = []
    decode: Callable[..., MaskPrediction] = Sam.decode

    def listen(self: Sam, embeddings: Tensor, prompts: Prompts, **kwargs: Any) -> MaskPrediction:
        questions.append((prompts, kwargs["multimask_output"]))
        return decode(self, embeddings, prompts, **kwargs)

    monkeypatch.setattr(Sam, "decode", listen)
    return questions


@pytest.mark.parametrize("from_box", [False, True])
def test_eleven_interactions_eight_of_which_add_a_point(
    asked: list[tuple[Prompts, bool]], from_box: bool
) -> None:
    config = TrainingConfig(box_probability=float(from_box))
    Trainer(tiny_sam(), config).step(make_batch())
    assert len(asked) == 11
    prompts = [prompt for prompt, _ in asked]
    num_points = [0 if p.point_coords is None else p.point_coords.shape[1] for p in prompts]
    added = [after - before for before, after in pairwise(num_points)]
    assert num_points[0] == (0 if from_box else 1)
    assert sorted(added) == [0, 0] + [1] * 8
    assert added[-1] == 0
    assert all((p.boxes is not None) == from_box for p in prompts)
    assert [p.mask_input is not None for p in prompts] == [False] + [True] * 10
    # Only a single point is ambiguous.
    assert [multimask for _, multimask in asked] == [not from_box] + [False] * 10


def test_the_logits_of_the_highest_predicted_iou_are_fed_back(
    asked: list[tuple[Prompts, bool]],
) -> None:
    sam, batch = tiny_sam(), make_batch()
    config = SHORT.model_copy(update={"box_probability": 0.0, "drop_path": 0.0})
    with torch.no_grad():
        embeddings = sam.encode(batch.images)  # type: ignore[arg-type]
    Trainer(sam, config.model_copy(update={"learning_rate": 1e-12})).step(batch)
    first = sam.decode(
        embeddings, asked[0][0], multimask_output=True, image_index=batch.image_index
    )
    best = first.low_res_masks[torch.arange(4), first.predicted_iou.argmax(dim=1)]
    fed_back = asked[1][0].mask_input
    assert fed_back is not None
    torch.testing.assert_close(fed_back[:, 0], best, rtol=1e-4, atol=1e-4)
    assert not fed_back.requires_grad


def test_masks_in_portions_teach_the_same_as_all_at_once(
    asked: list[tuple[Prompts, bool]],
) -> None:
    batch = make_batch(num_images=3)
    config = SHORT.model_copy(update={"num_corrections": 0, "box_noise_std": 0.0})
    size = SIZE // 4
    masks = batch.masks[:, ::4, ::4]
    first_points = masks.flatten(1).float().argmax(dim=1)
    targets = Targets(
        masks=masks,
        valid=batch.valid[:, ::4, ::4][batch.image_index],
        image_index=batch.image_index,
        scale=4.0,
        first_points=torch.stack([first_points % size, first_points // size], dim=1) * 4.0,
    )
    found = {}
    for at_once in (64, 2):
        asked.clear()
        sam = tiny_sam()
        embeddings = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
        embeddings.requires_grad_(True)
        metrics = backward_interactions(
            sam,
            config.model_copy(update={"masks_at_once": at_once}),
            embeddings,
            targets,
            torch.Generator().manual_seed(2),
        )
        gradients = {n: p.grad for n, p in sam.named_parameters() if p.grad is not None}
        found[at_once] = metrics, {"embeddings": embeddings.grad, **gradients}
        sizes = [len(prompts) for prompts, multimask_output in asked]
        assert max(sizes) == (4 if at_once == 64 else 2), sizes
        assert sum(sizes) == 2 * 6
    (whole, whole_gradients), (parts, parts_gradients) = found[64], found[2]
    assert parts == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(parts_gradients, whole_gradients, rtol=1e-4, atol=1e-6)


def test_training_interrupted_and_restored_goes_on_bit_for_bit() -> None:
    batches = [make_batch(seed) for seed in range(4)]
    straight = Trainer(tiny_sam(), SHORT)
    straight_metrics = [straight.step(batch) for batch in batches]

    first = Trainer(tiny_sam(), SHORT)
    for batch in batches[:2]:
        first.step(batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(123)  # whatever else draws from the global generator must not matter
    second = Trainer(Sam(first.sam.config), SHORT)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [second.step(batch) for batch in batches[2:]] == straight_metrics[2:]
    assert_equal(weights(second.sam), weights(straight.sam))


def test_it_learns_to_tell_two_rectangles_apart() -> None:
    config = TrainingConfig(
        num_corrections=0,
        num_repeats=1,
        box_probability=1.0,
        pixel_loss="balanced_bce",
        pixel_loss_weight=1.0,
        learning_rate=3e-3,
        warmup_steps=0,
        layer_decay=1.0,
        drop_path=0.0,
    )
    trainer, batch = Trainer(tiny_sam(dim=32), config), make_batch(num_images=1)
    metrics = [trainer.step(batch) for _ in range(60)]
    assert metrics[0]["miou_last"] < 0.5
    assert metrics[-1]["miou_last"] > 0.7
    assert metrics[-1]["loss"] < 0.4 * metrics[0]["loss"]


def losses_by_precision() -> tuple[float, float]:
    exact, half = (
        Trainer(tiny_sam(), SHORT.model_copy(update={"precision": precision})).step(make_batch())
        for precision in ("fp32", "bf16")
    )
    return exact["loss"], half["loss"]


def test_bf16_computes_nearly_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "has_bf16", lambda _device: True)
    exact, half = losses_by_precision()
    assert half == pytest.approx(exact, rel=0.02)
    assert half != exact


def test_a_processor_that_emulates_bf16_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactions, "has_bf16", lambda _device: False)
    exact, half = losses_by_precision()
    assert half == exact


def test_a_frozen_encoder_is_neither_called_nor_changed_nor_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sam, batch = tiny_sam(), make_batch()
    before = weights(sam)
    trainer = Trainer(sam, SHORT.model_copy(update={"freeze_image_encoder": True}))
    monkeypatch.setattr(Sam, "encode", None)
    trainer.step(batch)
    changed = {name for name, tensor in weights(sam).items() if not before[name].equal(tensor)}
    assert any(name.startswith("mask_decoder") for name in changed)
    assert any(name.startswith("prompt_encoder") for name in changed)
    assert not any(name.startswith("image_encoder") for name in changed)
    state = trainer.state_dict()
    assert not any(name.startswith("image_encoder") for name in state["sam"])
    other = Trainer(tiny_sam(), trainer.config)
    other.load_state_dict(state)
    assert_equal(weights(other.sam), weights(sam))


def test_all_of_a_learning_encoder_learns() -> None:
    sam = tiny_sam()
    before = weights(sam)
    Trainer(sam, SHORT.model_copy(update={"drop_path": 0.0})).step(make_batch())
    after = sam.image_encoder.state_dict()
    assert not [name for name in after if after[name].equal(before[f"image_encoder.{name}"])]


def test_norms_keep_the_statistics_of_the_checkpoint() -> None:
    torch.manual_seed(0)
    encoder = TinyViTConfig(
        embed_dims=(8, 16, 16, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        window_sizes=(4, 4, 4, 4),
    )
    sam = Sam(SamConfig(image_encoder=encoder, image_size=SIZE, embed_dim=16))
    before = weights(sam)
    Trainer(sam, SHORT).step(make_batch())
    changed = {
        name for name, tensor in weights(sam).items() if not torch.equal(tensor, before[name])
    }
    assert "image_encoder.patch_embed.seq.0.bn.weight" in changed
    assert not any("running" in name for name in changed)


def test_the_error_of_the_predicted_iou_may_count_absolutely() -> None:
    losses = {}
    for kind in ("squared", "absolute"):
        trainer = Trainer(tiny_sam(), SHORT.model_copy(update={"iou_loss": kind}))
        losses[kind] = trainer.step(make_batch())["iou_loss"]
    assert losses["squared"] < losses["absolute"] < losses["squared"] ** 0.5 + 1e-6


def test_a_batch_without_what_the_encoder_needs_is_refused() -> None:
    batch = make_batch()
    no_images = TrainingBatch(batch.masks, batch.image_index, batch.valid)
    with pytest.raises(ValueError, match="a batch without images"):
        Trainer(tiny_sam(), SHORT).step(no_images)
    frozen = SHORT.model_copy(update={"freeze_image_encoder": True})
    with pytest.raises(ValueError, match="a batch without embeddings"):
        Trainer(tiny_sam(), frozen).step(no_images)


def test_empty_and_nearly_full_masks_are_left_out() -> None:
    batch = make_batch(num_images=1)
    masks = torch.stack([batch.valid[0], torch.zeros_like(batch.valid[0]), batch.masks[0]])
    trainer = Trainer(tiny_sam(), SHORT)
    index = torch.zeros(3, dtype=torch.long)
    mixed = TrainingBatch(masks, index, batch.valid, images=batch.images)
    assert trainer.step(mixed)["num_masks"] == 1

    before = weights(trainer.sam)
    useless = TrainingBatch(masks[:2], index[:2], batch.valid, images=batch.images)
    assert trainer.step(useless)["num_masks"] == 0
    nothing = TrainingBatch(masks[:0], index[:0], batch.valid, images=batch.images)
    assert trainer.step(nothing)["num_masks"] == 0
    assert_equal(weights(trainer.sam), before)
    assert trainer.steps_done == 3


def test_targets_of_any_resolution_teach_the_same() -> None:
    """Rectangles on even pixels mean the same at half the resolution."""
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    masks[:, 8:40, 16:48] = True
    valid = torch.ones_like(masks)
    images, index = make_batch().images, torch.zeros(1, dtype=torch.long)
    losses = [
        Trainer(tiny_sam(), SHORT).step(TrainingBatch(m, index, v, images=images))["loss"]
        for m, v in ((masks, valid), (masks[:, ::2, ::2], valid[:, ::2, ::2]))
    ]
    assert losses[0] == losses[1]


def test_learning_rate_warms_up_and_falls_at_the_given_steps() -> None:
    def at(step: int) -> float:
        return scheduled_learning_rate(
            step, peak=1.0, warmup_steps=10, decay_steps=(20, 30), decay_factor=0.1
        )

    assert [at(0), at(4), at(9), at(19)] == [0.1, 0.5, 1.0, 1.0]
    assert at(20) == pytest.approx(0.1)
    assert at(30) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["vit_b", "mobile_sam"])
def test_lower_layers_of_the_encoder_learn_slower(name: str) -> None:
    sam = Sam(PRESETS[name]) if name == "mobile_sam" else _on_meta(PRESETS[name])
    optimizer = build_optimizer(sam, betas=(0.9, 0.999), weight_decay=0.1, layer_decay=0.8)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scales = {n: group_of[id(p)]["lr_scale"] for n, p in sam.named_parameters() if p.requires_grad}
    blocks, depth = ("layers", 4) if name == "mobile_sam" else ("blocks", 12)
    last = next(s for n, s in scales.items() if f"{blocks}.{depth - 1}." in n)
    first = next(s for n, s in scales.items() if f"{blocks}.0." in n)
    patch = next(s for n, s in scales.items() if "patch_embed" in n)
    assert (last, first, patch) == pytest.approx((0.8, 0.8**depth, 0.8 ** (depth + 1)))
    assert {s for n, s in scales.items() if "neck" in n or "decoder" in n} == {1.0}
    decays = {n: group_of[id(p)]["weight_decay"] for n, p in sam.named_parameters() if n in scales}
    for n, decay in decays.items():
        if n.endswith(".bias") or "rel_pos" in n or "mask_tokens" in n or "attention_biases" in n:
            assert decay == 0.0, n
    assert (
        decays["mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"] == 0.1
    )


def _on_meta(config: SamConfig) -> Sam:
    with torch.device("meta"):
        return Sam(config)


def test_drop_path_rises_from_the_first_block_to_the_last() -> None:
    sam = tiny_sam()
    set_drop_path(sam.image_encoder, 0.4)
    blocks = sam.image_encoder.blocks
    assert [block.drop_path.probability for block in blocks] == [0.0, 0.2, 0.4]  # type: ignore[union-attr]


def in_a_group(
    monkeypatch: pytest.MonkeyPatch, rank: int, all_reduce: Callable[..., object]
) -> None:
    """As if this were one process of two."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)


@pytest.mark.parametrize(("masks", "expected"), [(1.0, [2.5, 2.0]), (9.0, [1.5, 0.0])])
def test_gradients_are_averaged_over_the_masks_of_all_workers(
    monkeypatch: pytest.MonkeyPatch, masks: float, expected: list[float]
) -> None:
    """The other worker has found gradients of 3 from three masks, but for what is frozen."""

    def add_theirs(tensor: Tensor, *, async_op: bool = False) -> SimpleNamespace:
        if not async_op:  # the number of masks, and what has a gradient
            tensor.add_(torch.tensor([3.0, 1.0, 1.0, 0.0]))
        return SimpleNamespace(wait=lambda: tensor.add_(3.0 * 3.0 / (masks + 3.0)))

    in_a_group(monkeypatch, 0, add_theirs)
    taught, untaught, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    taught.grad = torch.tensor([1.0, -1.0])
    average_gradients([taught, untaught, frozen], weight=masks)
    assert frozen.grad is None
    assert taught.grad.tolist() == pytest.approx(expected)
    assert untaught.grad is not None
    assert untaught.grad.tolist() == pytest.approx([9 / (masks + 3)] * 2)


def test_a_batch_without_a_mask_anywhere_leaves_no_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_a_group(monkeypatch, 0, lambda tensor, **_: SimpleNamespace(wait=lambda: None))
    untaught = torch.nn.Parameter(torch.zeros(2))
    average_gradients([untaught], weight=0.0)
    assert untaught.grad is None


def test_every_worker_draws_its_own_clicks(
    asked: list[tuple[Prompts, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SHORT.model_copy(update={"box_probability": 0.0})
    for rank in (0, 1):
        in_a_group(monkeypatch, rank, lambda tensor, **_: SimpleNamespace(wait=lambda: None))
        Trainer(tiny_sam(), config).step(make_batch())
    first, second = asked[0][0].point_coords, asked[len(asked) // 2][0].point_coords
    assert first is not None
    assert second is not None
    assert first.shape == second.shape
    assert not torch.equal(first, second)
