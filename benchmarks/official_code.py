"""Does the official code build and load the shipped checkpoint, and answer as ours does?

    pip install --no-deps --target official segment-anything==1.0 segment-anything-hq==0.3
    python -m benchmarks.official_code official

The second package brings MobileSAM's TinyViT, which is not published by itself. Both are used
without what they import beside torch (torchvision, timm). `strict` loading accepts no name and no
shape that differs. Printed: largest relative differences of embeddings, low-res masks and predicted
IoUs, and that of the masks in pixels.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.scenes import draw_scene
from model.checkpoint import CHECKPOINTS_DIR, load_checkpoint
from model.prompt_encoder import Prompts
from stages.predictor import embed

SIDE = 512
CELLS = SIDE // 16


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder of the two packages")
    options = parser.parse_args(arguments)
    sam = official_sam(options.packages)
    weights = load_file(CHECKPOINTS_DIR / "sa-tiny" / "model.safetensors")
    sam.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    sam.eval()  # only now: the encoder computes its attention biases when it leaves training
    print(json.dumps({"parameters_loaded": len(weights), **differences(sam)}))


def official_sam(packages: Path) -> Any:
    """The official `Sam` from documented arguments (docs/model_card.md)."""
    sys.path.insert(0, str(packages))
    _stand_in_for_timm()
    official = _without_init("segment_anything", "modeling")
    tiny_vit = _without_init("segment_anything_hq", "modeling.tiny_vit_sam")
    sam = official.Sam(
        image_encoder=tiny_vit.TinyViT(
            img_size=SIDE,
            num_classes=0,
            embed_dims=[48, 96, 160, 320],
            depths=[2, 2, 6, 2],
            num_heads=[2, 3, 5, 5],
            window_sizes=[8, 8, 8, 32],
        ),
        prompt_encoder=official.PromptEncoder(
            embed_dim=256,
            image_embedding_size=(CELLS, CELLS),
            input_image_size=(SIDE, SIDE),
            mask_in_chans=16,
        ),
        mask_decoder=official.MaskDecoder(
            num_multimask_outputs=3,
            transformer=official.TwoWayTransformer(
                depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8
            ),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )
    sam.image_encoder.forward = lambda images: _features(sam.image_encoder, images)
    return sam


def _features(encoder: Any, images: Tensor) -> Tensor:
    """Its own forward pass, but for the embedding's 64 x 64 cells, which are written there."""
    x = encoder.patch_embed(images)
    for layer in encoder.layers:
        x = layer(x)
    cells = x.view(len(x), CELLS, CELLS, -1).permute(0, 3, 1, 2)
    return encoder.neck(cells)


@torch.no_grad()
def differences(sam: Any) -> dict[str, float]:
    ours = load_checkpoint("sa-tiny").sam
    pixels = draw_scene(0, 0, (384, SIDE)).pixels
    image = sam.preprocess(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float())[None]
    their_embedding, our_embedding = sam.image_encoder(image), embed(ours, pixels)
    points = torch.tensor([[[200.0, 150.0], [60.0, 300.0]]]), torch.tensor([[1, 0]])
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
    their_masks, their_iou = sam.mask_decoder(
        image_embeddings=their_embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    prompts = Prompts(point_coords=points[0], point_labels=points[1])
    prediction = ours.decode(our_embedding, prompts, multimask_output=True)
    our_masks = prediction.low_res_masks
    return {
        "embedding": _relative(their_embedding, our_embedding),
        "low_res_masks": _relative(their_masks, our_masks),
        "predicted_iou": _relative(their_iou, prediction.predicted_iou),
        "mask_pixels": float(((their_masks > 0) != (our_masks > 0)).float().mean()),
    }


def _relative(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs - ours).abs().max() / theirs.abs().max())


def _without_init(package: str, module: str) -> ModuleType:
    """A module of a package whose `__init__` imports torchvision."""
    bare = ModuleType(package)
    bare.__path__ = [str(Path(path) / package) for path in sys.path]
    sys.modules[package] = bare
    return importlib.import_module(f"{package}.{module}")


class _DropPath(nn.Identity):
    """Nothing is dropped when a model is used."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()


def _stand_in_for_timm() -> None:
    """What TinyViT takes from timm."""
    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    layers.DropPath = _DropPath  # type: ignore[attr-defined]
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    sys.modules |= {
        "timm": ModuleType("timm"),
        "timm.models": ModuleType("timm.models"),
        "timm.models.layers": layers,
        "timm.models.registry": registry,
    }


if __name__ == "__main__":
    main()
