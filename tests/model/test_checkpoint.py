"""Checkpoints on disk: what is written comes back, and nothing half-written is ever loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import atomic_folder, checkpoint
from model.checkpoint import (
    Lineage,
    encoder_sha256,
    list_checkpoints,
    load_checkpoint,
    recognise_official,
    save_checkpoint,
)
from model.image_encoder import ViTConfig
from model.prompt_encoder import Prompts
from model.sam import PRESETS, Sam, SamConfig
from model.tiny_vit import TinyViTConfig

LINEAGE = Lineage(
    parent="start@0123456789ab",
    round=2,
    stage="assisted_manual",
    steps=7,
    shards=("00000", "00001"),
    metrics={"miou_1_click": 0.5},
)


def small_config(decoder_depth: int = 2) -> SamConfig:
    encoder = ViTConfig(embed_dim=16, depth=2, num_heads=2, global_attn_indexes=(1,), window_size=3)
    return SamConfig(
        image_encoder=encoder, image_size=64, embed_dim=16, decoder_depth=decoder_depth
    )


@pytest.fixture
def sam() -> Sam:
    torch.manual_seed(0)
    return Sam(small_config()).eval()


def predict(sam: Sam) -> torch.Tensor:
    embeddings = sam.encode(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
    prompts = Prompts(boxes=torch.tensor([[5.0, 6.0, 40.0, 50.0]]))
    return sam.decode(embeddings, prompts, multimask_output=True).low_res_masks


def test_a_saved_checkpoint_loads_with_equal_weights_config_and_lineage(
    sam: Sam, tmp_path: Path
) -> None:
    save_checkpoint(sam, tmp_path / "round-2", LINEAGE)
    loaded = load_checkpoint(tmp_path / "round-2")
    assert loaded.config == sam.config
    assert loaded.lineage == LINEAGE
    assert loaded.label == f"round-2@{loaded.sha256[:12]}"
    assert not loaded.sam.training
    torch.testing.assert_close(predict(loaded.sam), predict(sam), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_loads_as_fp32(
    sam: Sam, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_checkpoint(sam, tmp_path / "full", LINEAGE)
    save_checkpoint(sam, tmp_path / "half", LINEAGE, dtype=dtype)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = load_checkpoint(tmp_path / "half").sam
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(predict(loaded), predict(sam), rtol=0.02, atol=0.02)


def test_the_hash_follows_weights_and_config(sam: Sam, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_checkpoint(sam, tmp_path / name, LINEAGE)
    torch.nn.init.zeros_(sam.mask_decoder.iou_token.weight)
    save_checkpoint(sam, tmp_path / "c", LINEAGE)
    a, b, c = (load_checkpoint(tmp_path / name) for name in ("a", "b", "c"))
    assert a.sha256 == b.sha256 != c.sha256


def test_the_encoder_hash_ignores_the_decoder_and_nothing_else(sam: Sam) -> None:
    before = encoder_sha256(sam)
    torch.nn.init.zeros_(sam.mask_decoder.iou_token.weight)
    assert encoder_sha256(sam) == before
    with torch.no_grad():
        sam.image_encoder.pos_embed[0, 0, 0, 0] += 1
    assert encoder_sha256(sam) != before


def test_an_existing_checkpoint_is_refused_not_overwritten(sam: Sam, tmp_path: Path) -> None:
    save_checkpoint(sam, tmp_path / "a", LINEAGE)
    sha256 = load_checkpoint(tmp_path / "a").sha256
    torch.nn.init.zeros_(sam.mask_decoder.iou_token.weight)
    with pytest.raises(ValueError, match="exists already"):
        save_checkpoint(sam, tmp_path / "a", LINEAGE)
    assert load_checkpoint(tmp_path / "a").sha256 == sha256
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("killed_in", ["write_text", "_fsync"])
def test_an_interrupted_save_leaves_nothing_loadable(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_folder if killed_in == "_fsync" else Path, killed_in, die)
    # A killed process cannot clean up either.
    monkeypatch.setattr(atomic_folder.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(checkpoint, "CHECKPOINTS_DIR", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(sam, tmp_path / "a", LINEAGE)
    monkeypatch.undo()

    monkeypatch.setattr(checkpoint, "CHECKPOINTS_DIR", tmp_path)
    (left_over,) = tmp_path.iterdir()
    assert list_checkpoints() == ()
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "a")
    with pytest.raises(ValueError, match="never finished"):
        load_checkpoint(left_over)
    save_checkpoint(sam, tmp_path / "a", LINEAGE)
    assert list_checkpoints() == ("a",)


def test_weights_that_do_not_fit_half_precision_are_refused(sam: Sam, tmp_path: Path) -> None:
    torch.nn.init.constant_(sam.mask_decoder.iou_token.weight, 1e6)
    with pytest.raises(ValueError, match=r"mask_decoder\.iou_token\.weight is not finite"):
        save_checkpoint(sam, tmp_path / "a", LINEAGE, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_shipped_checkpoints_are_found_by_name(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINTS_DIR", tmp_path)
    save_checkpoint(sam, tmp_path / "small", LINEAGE)
    assert list_checkpoints() == ("small",)
    assert load_checkpoint("small").name == "small"
    with pytest.raises(ValueError, match=r"no checkpoint at large: .* names small"):
        load_checkpoint("large")


def test_a_cut_off_weights_file_is_named(sam: Sam, tmp_path: Path) -> None:
    save_checkpoint(sam, tmp_path / "a", LINEAGE)
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a/model\.safetensors is damaged or cut off"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    ("unusable", "dtype"),
    [(torch.nan, "float32"), (torch.inf, "float32"), (0, "int8")],
)
def test_weights_that_are_not_finite_or_integers_are_refused(
    sam: Sam, tmp_path: Path, unusable: float, dtype: str
) -> None:
    save_checkpoint(sam, tmp_path / "a", LINEAGE)
    path = tmp_path / "a" / "model.safetensors"
    weights = load_file(path)
    name = "mask_decoder.iou_token.weight"
    weights[name] = torch.full_like(weights[name], unusable, dtype=getattr(torch, dtype))
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"1 of \d+ tensors .* first {name} \(torch\.{dtype}\)"):
        load_checkpoint(tmp_path / "a")


def test_a_config_that_does_not_fit_the_weights_is_refused(sam: Sam, tmp_path: Path) -> None:
    save_checkpoint(sam, tmp_path / "a", LINEAGE)
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_multimask_outputs": 4}))
    with pytest.raises(ValueError, match=r"found \(4, 16\), expected \(5, 16\)"):
        load_checkpoint(tmp_path / "a")
    path.write_text(json.dumps(config | {"image_sise": 64}))
    with pytest.raises(ValueError, match=r"config\.json is not a valid SamConfig: image_sise"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("depth", [2, 3])
def test_official_files_are_recognised_by_their_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """With a small ViT in the place of ViT-B: the real one would take seconds."""
    monkeypatch.setitem(PRESETS, "vit_b", small_config())
    sam = Sam(small_config(decoder_depth=depth))
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(sam.state_dict() | {"pixel_mean": torch.zeros(3, 1, 1)}, path)
    loaded = load_checkpoint(path)
    assert loaded.config == sam.config
    assert loaded.name == "sam_vit_b_01ec64"
    assert loaded.lineage is None
    torch.testing.assert_close(predict(loaded.sam), predict(sam.eval()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_published_shapes_tell_the_published_models_apart(name: str) -> None:
    with torch.device("meta"):
        weights = Sam(PRESETS[name]).state_dict()
    assert recognise_official(weights, Path("x.pth")) == PRESETS[name]


def test_mobile_sam_is_recognised_with_its_unused_classifier(tmp_path: Path) -> None:
    encoder = TinyViTConfig(num_classes=1000)
    sam = Sam(PRESETS["mobile_sam"].model_copy(update={"image_encoder": encoder}))
    torch.save(sam.state_dict(), tmp_path / "mobile_sam.pt")
    loaded = load_checkpoint(tmp_path / "mobile_sam.pt")
    assert loaded.config == sam.config
    assert encoder_sha256(loaded.sam) == encoder_sha256(sam)


def test_a_file_is_believed_to_have_the_layers_that_it_holds() -> None:
    weights = {
        "image_encoder.patch_embed.seq.0.c.weight": torch.zeros(1),
        "image_encoder.head.weight": torch.tensor(3.0),
        "mask_decoder.transformer.layers.999.norm1.weight": torch.zeros(256),
    }
    config = recognise_official(weights, Path("x.pth"))
    assert config == PRESETS["mobile_sam"].model_copy(update={"decoder_depth": 1})


NO_PIXEL = {
    "image_encoder.pos_embed": torch.zeros(1, 0, 0, 768),
    "mask_decoder.transformer.layers.0.norm1.weight": torch.zeros(256),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no dictionary of tensors"),
        ({0: torch.zeros(1)}, "no dictionary of tensors by their names"),
        ({"w": torch.zeros(1)}, "no Segment Anything model: its 1 tensors begin with w;"),
        (Sam(small_config()).state_dict(), "expected the weights of vit_b, vit_l, vit_h"),
        (NO_PIXEL, "no Segment Anything model: its 2 tensors"),
        (Path, "torch cannot read it"),
        (b"not a checkpoint", "torch cannot read it"),
        (b"", "torch cannot read it"),
        (b"Repository Not Found", "torch cannot read it"),
        (b"G\x00bhc", "torch cannot read it"),
    ],
    ids=[
        "list",
        "numbers for names",
        "other names",
        "other sizes",
        "an image without a pixel",
        "unsafe pickle",
        "text",
        "empty",
        "a server's refusal",
        "a few bytes",
    ],
)
def test_files_that_are_no_model_are_refused_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path)
    assert "weights.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_off_official_file_is_refused(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(sam.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"weights\.pth is no checkpoint, or is cut off"):
        load_checkpoint(path)
