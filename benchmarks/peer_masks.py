"""Automatic masks by the official generator or transformers' pipeline, with our weights.

    python -m benchmarks.peer_masks TASK.json ANSWER.json

Runs in the environment that benchmarks/automatic_masks.py makes for it. Both borrow our image
encoder, for want of a TinyViT; everything after the image embedding is their own.
Each is imported only where it is used, so that its memory counts for itself.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from benchmarks.mask_task import FoundMask, Made, Task
from benchmarks.process import peak_mb
from model.checkpoint import load_checkpoint
from model.sam import STRIDE, Sam

Pixels = NDArray[np.uint8]
POINTS_PER_BATCH = 64  # the default of both


def main() -> None:
    task = Task.model_validate_json(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task.threads)
    sam = load_checkpoint(task.checkpoint).sam.eval()
    generators = {"official": official, "transformers": transformers}
    generate = generators[task.generator](sam, task)
    with Image.open(task.image) as file:
        pixels = np.asarray(file.convert("RGB"))
    started = time.monotonic()
    masks = generate(pixels)
    made = Made(seconds=time.monotonic() - started, peak_mb=peak_mb(), masks=masks)
    Path(sys.argv[2]).write_text(made.model_dump_json())


def official(sam: Sam, task: Task) -> Callable[[Pixels], list[FoundMask]]:
    from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(
        official_model(sam),
        points_per_side=task.points_per_side,
        points_per_batch=POINTS_PER_BATCH,
        pred_iou_thresh=task.pred_iou_thresh,
        stability_score_thresh=task.stability_score_thresh,
        stability_score_offset=task.stability_score_offset,
        box_nms_thresh=task.box_nms_thresh,
        crop_n_layers=task.crop_n_layers,
        crop_n_points_downscale_factor=2 if task.crop_n_layers else 1,
        min_mask_region_area=task.min_mask_region_area,
        output_mode="coco_rle",
    )

    def generate(pixels: Pixels) -> list[FoundMask]:
        return [
            found(mask["segmentation"], mask["predicted_iou"], mask["stability_score"])
            for mask in generator.generate(pixels)
        ]

    return generate


def official_model(sam: Sam) -> Any:
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
    from segment_anything.modeling import Sam as OfficialSam

    config, encoder = sam.config, sam.image_encoder
    encoder.img_size = config.image_size
    dim, side = config.embed_dim, config.image_size // STRIDE
    transformer = TwoWayTransformer(
        depth=config.decoder_depth, embedding_dim=dim, mlp_dim=2048, num_heads=8
    )
    model = OfficialSam(
        encoder,
        PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(side, side),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer,
            transformer_dim=dim,
            iou_head_depth=3,
            iou_head_hidden_dim=dim,
        ),
    )
    model.load_state_dict(sam.state_dict())
    return model.eval()


def transformers(sam: Sam, task: Task) -> Callable[[Pixels], list[FoundMask]]:
    """It has no NMS within a crop of its own, so the threshold goes to the one it has."""
    from transformers import SamImageProcessor, SamModel, pipeline

    from benchmarks.transformers_names import renamed, their_config

    size = sam.config.image_size
    model = SamModel(their_config(sam.config)).eval()
    weights = renamed(sam.state_dict())
    decoder = {name: value for name, value in weights.items() if "vision_encoder" not in name}
    missing, unexpected = model.load_state_dict(decoder, strict=False)
    assert not unexpected
    assert all(name.startswith("vision_encoder") for name in missing)
    model.get_image_embeddings = sam.encode
    processor = SamImageProcessor(
        size={"longest_edge": size},
        pad_size={"height": size, "width": size},
        mask_size={"longest_edge": size // 4},
        mask_pad_size={"height": size // 4, "width": size // 4},
    )
    generator: Any = pipeline("mask-generation", model=model, image_processor=processor)

    def generate(pixels: Pixels) -> list[FoundMask]:
        output = generator(
            Image.fromarray(pixels),
            points_per_batch=POINTS_PER_BATCH,
            points_per_crop=task.points_per_side,
            pred_iou_thresh=task.pred_iou_thresh,
            stability_score_thresh=task.stability_score_thresh,
            stability_score_offset=task.stability_score_offset,
            crops_nms_thresh=task.box_nms_thresh,
        )
        return [
            found(coco.encode(np.asfortranarray(mask, dtype=np.uint8)), float(score), None)
            for mask, score in zip(output["masks"], output["scores"], strict=True)
        ]

    return generate


def found(rle: dict[str, Any], predicted_iou: float, stability: float | None) -> FoundMask:
    counts = rle["counts"]
    return FoundMask(
        size_hw=tuple(rle["size"]),
        counts=counts if isinstance(counts, str) else counts.decode("ascii"),
        predicted_iou=predicted_iou,
        stability_score=stability,
    )


if __name__ == "__main__":
    main()
