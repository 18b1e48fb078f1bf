"""Checkpoints: a folder of weights, configuration and lineage; official .pth files are read too.

A folder holds `model.safetensors` (parameters under the official names), `config.json`
(`SamConfig`) and `lineage.json` (`Lineage`). It is written whole or not at all.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.atomic_folder import STAGED_PREFIX, atomic_folder
from model.image_encoder import ViTConfig
from model.sam import STRIDE, Sam, SamConfig
from model.tiny_vit import TinyViTConfig

CHECKPOINTS_DIR = Path(__file__).parent / "checkpoints"
"""Checkpoints that come with the package; they are loaded by name."""

Model = TypeVar("Model", bound=BaseModel)

WEIGHTS, CONFIG, LINEAGE = "model.safetensors", "config.json", "lineage.json"


class Lineage(BaseModel):
    """Where a checkpoint comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    parent: str = ""
    """Label of the checkpoint that training started from; empty when it started from nothing."""
    round: int | None = None
    """Round whose shards it was trained on; None outside a run."""
    stage: str = ""
    """Of that round."""
    steps: int = 0
    """Training steps since the parent."""
    shards: tuple[str, ...] = ()
    """Shards trained on."""
    metrics: dict[str, float] = {}
    """Of the training, such as its last losses."""


@dataclass(frozen=True)
class Checkpoint:
    sam: Sam
    """In eval mode, fp32."""
    config: SamConfig
    lineage: Lineage | None
    """None for the official files, which do not say."""
    name: str
    sha256: str
    """Of a folder's config.json followed by its model.safetensors, or of the one .pth file."""

    @property
    def label(self) -> str:
        """Name and hash: what records and lineages keep."""
        return f"{self.name}@{self.sha256[:12]}"


def save_checkpoint(
    sam: Sam, directory: Path, lineage: Lineage, dtype: torch.dtype = torch.float32
) -> None:
    """Write a new folder; an existing one is refused. `dtype` is that of the stored parameters."""
    with atomic_folder(directory) as staged:
        save_file(storable_weights(sam, dtype), staged / WEIGHTS)
        (staged / CONFIG).write_text(sam.config.model_dump_json(indent=2) + "\n")
        (staged / LINEAGE).write_text(lineage.model_dump_json(indent=2) + "\n")


def load_checkpoint(name_or_path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a shipped checkpoint by name, a folder, or an official SAM or MobileSAM .pth file."""
    path = _find(name_or_path)
    if path.is_file():
        weights = _read_pth(path)
        config, lineage, files = recognise_official(weights, path), None, [path]
    else:
        config = read_json(path / CONFIG, SamConfig)
        lineage = read_json(path / LINEAGE, Lineage)
        weights, files = read_safetensors(path / WEIGHTS), [path / CONFIG, path / WEIGHTS]
    sam = Sam(config)
    load_weights(sam, weights, path)
    name = path.stem if path.is_file() else path.resolve().name
    return Checkpoint(sam.to(device).eval(), config, lineage, name, _sha256_of_files(files))


def list_checkpoints() -> tuple[str, ...]:
    """Names of the checkpoints that come with the package."""
    if not CHECKPOINTS_DIR.is_dir():
        return ()
    return tuple(sorted(path.name for path in CHECKPOINTS_DIR.iterdir() if _is_checkpoint(path)))


def encoder_sha256(sam: Sam) -> str:
    """Identity of the image embeddings a model makes: two models of equal hash make the same."""
    config = sam.config.model_dump(mode="json", exclude={"decoder_depth", "num_multimask_outputs"})
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(sam.image_encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def storable_weights(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters in `dtype`; buffers, which are small and hold positions, stay as they are.

    Raises:
        ValueError: one is not finite.
    """
    weights = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    weights |= {name: weights[name].to(dtype) for name, _ in module.named_parameters()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"parameter {name} is not finite as {dtype}; the training has diverged, or the "
                "checkpoint needs dtype=torch.float32"
            )
    return weights


def _find(name_or_path: str | Path) -> Path:
    """A str that names a shipped checkpoint is that one; everything else is a path."""
    if isinstance(name_or_path, str) and name_or_path in list_checkpoints():
        return CHECKPOINTS_DIR / name_or_path
    path = Path(name_or_path)
    if path.is_file() or _is_checkpoint(path):
        return path
    if path.name.startswith(STAGED_PREFIX):
        found = "is a save that never finished"
    elif path.is_dir():
        missing = [n for n in (WEIGHTS, CONFIG, LINEAGE) if not (path / n).is_file()]
        found = f"is a folder without {', '.join(missing)}"
    else:
        found = "does not exist"
    raise ValueError(
        f"no checkpoint at {name_or_path}: it {found}; expected a checkpoint folder, an official "
        f".pth file or one of the names {', '.join(list_checkpoints()) or '(none shipped)'}"
    )


def _is_checkpoint(path: Path) -> bool:
    return not path.name.startswith(STAGED_PREFIX) and all(
        (path / name).is_file() for name in (WEIGHTS, CONFIG, LINEAGE)
    )


def read_json(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(
            f"{path} is not a valid {model.__name__}: {where}: {first['msg']}; restore the file or "
            "save the checkpoint again"
        ) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}); expected a complete safetensors file; copy "
            "it again"
        ) from None
    return weights


def _read_pth(path: Path) -> dict[str, Tensor]:
    problem = "it holds no dictionary of tensors by their names"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler trips over other files in many ways
        problem = f"torch cannot read it ({str(error).splitlines()[0] if str(error) else error!r})"
        weights = None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise ValueError(
            f"{path} is no checkpoint, or is cut off: {problem}; expected an official SAM or "
            "MobileSAM .pth file, or a checkpoint folder"
        )
    # Some exports keep these two; here they belong to the configuration.
    return {name: t for name, t in weights.items() if name not in ("pixel_mean", "pixel_std")}


def recognise_official(weights: dict[str, Tensor], path: Path) -> SamConfig:
    """The configuration that official weights were made with, from their names and shapes."""
    layers = [re.match(r"mask_decoder\.transformer\.layers\.(\d+)\.", name) for name in weights]
    depth = len({match[1] for match in layers if match})  # not the highest number, which may be any
    config = _recognise_encoder(weights)
    if config is None or depth == 0:
        raise ValueError(
            f"{path} is no Segment Anything model: its {len(weights)} tensors begin with "
            f"{', '.join(sorted(weights)[:3])}; expected the weights of vit_b, vit_l, vit_h or "
            "mobile_sam under the official names"
        )
    return config.model_copy(update={"decoder_depth": depth})


def _recognise_encoder(weights: dict[str, Tensor]) -> SamConfig | None:
    if "image_encoder.patch_embed.seq.0.c.weight" in weights:
        head = weights.get("image_encoder.head.weight", torch.empty(0))
        encoder = TinyViTConfig(num_classes=len(head) if head.ndim else 0)
        return SamConfig.preset("mobile_sam").model_copy(update={"image_encoder": encoder})
    positions = weights.get("image_encoder.pos_embed")
    if positions is None or positions.ndim != 4 or positions.numel() == 0:
        return None
    for config in map(SamConfig.preset, ("vit_b", "vit_l", "vit_h")):
        vit = config.image_encoder
        if isinstance(vit, ViTConfig) and vit.embed_dim == positions.shape[-1]:
            return config.model_copy(update={"image_size": positions.shape[1] * STRIDE})
    return None


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load by name, or say in one line which tensors do not fit or hold no usable numbers."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [
        f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise ValueError(
            f"the weights in {path} do not fit their model: {len(wrong)} of {len(expected)} "
            f"tensors differ, first {'; '.join(wrong[:3])}"
        )
    unusable = [
        f"{name} ({weights[name].dtype})"
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not _is_usable(weights[name])
    ]
    if unusable:
        raise ValueError(
            f"the weights in {path} cannot be used: {len(unusable)} of {len(expected)} tensors are "
            f"not finite or hold integers, first {', '.join(unusable[:3])}; expected finite values "
            "in fp32, fp16 or bf16"
        )
    module.load_state_dict(weights)


def _is_usable(weights: Tensor) -> bool:
    return weights.is_floating_point() and bool(weights.float().isfinite().all())


def _sha256_of_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
