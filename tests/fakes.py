"""Small real things that stand in for large ones."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from engine.scenes import write_scenes
from model.checkpoint import Lineage, save_checkpoint
from model.mask_decoder import MaskPrediction, wanted_outputs
from model.prompt_encoder import Prompts
from model.sam import Sam, SamConfig
from model.tiny_vit import TinyViTConfig
from stages.predictor import Answer
from stages.prompts import mask_iou
from stages.rle import Mask


class ManualClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def tiny_sam(seed: int = 0, image_size: int = 128) -> Sam:
    """A Sam of random weights that answers in milliseconds."""
    torch.manual_seed(seed)
    encoder = TinyViTConfig(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
    config = SamConfig(image_encoder=encoder, image_size=image_size, embed_dim=32)
    return Sam(config).eval()


def save_tiny_sam(folder: str, seed: int = 0) -> str:
    save_checkpoint(tiny_sam(seed), Path(folder), Lineage())
    return folder


def noise_and_model(folder: Path) -> list[str]:
    """What benchmarks are told of an image of noise and a model of random weights."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return ["--images", str(folder / "noise.png"), "--checkpoint", save_tiny_sam(f"{folder}/tiny")]


def rectangle(size_hw: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> Mask:
    """A mask of rows y0 to y1 and columns x0 to x1, ends exclusive."""
    mask = np.zeros(size_hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


class TruthfulPredictor:
    """Answers with the object under the first click, or within the box, its outline grown.

    A click mends the answer within `reach` pixels around it; 0 makes it deaf to corrections.
    Of three outputs the first is right, and the last is the most confident.
    """

    def __init__(self, truths: Sequence[Mask], *, grown: int = 0, reach: float = 0.0) -> None:
        self.size_hw: tuple[int, int] = (truths[0].shape[0], truths[0].shape[1])
        self._truths, self._grown, self._reach = truths, grown, reach

    def predict(
        self,
        points: tuple[tuple[float, float], ...] = (),
        labels: tuple[int, ...] = (),
        *,
        box_xyxy: tuple[float, float, float, float] | None = None,
        mask_input: Tensor | None = None,
        before: Mask | None = None,
        multimask_output: bool,
    ) -> Answer:
        truth = self._meant(points, box_xyxy)
        answer = ndimage.binary_dilation(truth, iterations=self._grown) if self._grown else truth
        rows, columns = np.indices(self.size_hw)
        for x, y in points if self._reach else ():
            near = np.hypot(columns - x, rows - y) <= self._reach
            answer = np.where(near, truth, answer)
        smaller = (ndimage.binary_erosion(truth, iterations=self._grown + n) for n in (1, 2))
        masks = (answer, *smaller)
        count = 3 if multimask_output else 1
        return Answer(
            masks=masks[:count],
            predicted_iou=(0.7, 0.8, 0.9)[:count],
            stability_score=(0.97, 0.98, 0.99)[:count],
            low_res_masks=torch.zeros(count, 8, 8),
            are_regions=(False,) * count,
        )

    def _meant(
        self,
        points: tuple[tuple[float, float], ...],
        box_xyxy: tuple[float, float, float, float] | None,
    ) -> Mask:
        if box_xyxy is not None:
            x0, y0, x1, y1 = (int(value) for value in box_xyxy)
            boxed = rectangle(self.size_hw, y0, x0, y1 + 1, x1 + 1)
            return max(self._truths, key=lambda truth: mask_iou(truth & boxed, boxed))
        x, y = points[0]
        under = (truth for truth in self._truths if truth[int(y), int(x)])
        return next(under, np.zeros(self.size_hw, dtype=bool))


class ColourSam(nn.Module):
    """Takes what has the colour under the prompt for an object: right on flatly coloured scenes.

    Its embedding is the image at a quarter of the input. The single output, and of three the first,
    is sure of itself, the others are not.
    """

    def __init__(self, image_size: int = 128, sharpness: float = 10.0) -> None:
        super().__init__()
        self.config = SamConfig(image_encoder=TinyViTConfig(), image_size=image_size)
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    @property
    def device(self) -> torch.device:
        return self.sharpness.device

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4)

    def prepare(self, image_embedding: Tensor) -> "ColourDecoder":
        return ColourDecoder(self, image_embedding)

    def decode(
        self, image_embeddings: Tensor, prompts: Prompts, *, multimask_output: bool | None
    ) -> MaskPrediction:
        if prompts.boxes is None:
            assert prompts.point_coords is not None
            centres = prompts.point_coords[:, 0]
        else:
            centres = prompts.boxes.unflatten(1, (2, 2)).mean(dim=1)
        side = self.config.low_res_size
        cells = (centres / 4).long().clamp(0, side - 1)
        colours = image_embeddings[0, :, cells[:, 1], cells[:, 0]].T
        distance = (image_embeddings - colours[:, :, None, None]).abs().sum(dim=1, keepdim=True)
        said = torch.tensor([0.95, 0.95, 0.5, 0.3])
        confidence = said[wanted_outputs(multimask_output)].expand(len(cells), -1)
        logits = (self.sharpness * (3 - distance)).clamp(-30, 30)
        return MaskPrediction(
            low_res_masks=logits.expand(-1, confidence.shape[1], -1, -1),
            predicted_iou=confidence,
            iou_token=torch.zeros(len(cells), 1),
        )


class ColourDecoder:
    """What `Sam.prepare` gives, of a ColourSam."""

    def __init__(self, sam: ColourSam, image_embedding: Tensor) -> None:
        self._sam, self._embedding = sam, image_embedding

    @torch.inference_mode()
    def read(self, prompts: Prompts, *, multimask_output: bool) -> MaskPrediction:
        return self._sam.decode(self._embedding, prompts, multimask_output=multimask_output)

    def masks(self, reading: MaskPrediction, index: Tensor) -> Tensor:
        return reading.low_res_masks[index]


A, B = TypeVar("A"), TypeVar("B")


class OneAfterAnother:
    """Stands for a pool of processes."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "OneAfterAnother":
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        return map(function, items)


def split_scenes(folder: Path) -> tuple[Path, set[str]]:
    """A COCO-style folder of eight drawn images, and the names of those of its split `val`."""
    scenes = folder / "scenes"
    write_scenes(scenes, 3, 8, (60, 80))
    instances = scenes / "instances.json"
    document = json.loads(instances.read_text())
    for image in document["images"]:
        image["split"] = "val" if image["id"] % 4 == 0 else "train"
    instances.write_text(json.dumps(document))
    return scenes, {image["file_name"] for image in document["images"] if image["split"] == "val"}
