from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch

from fakes import tiny_sam
from model.checkpoint import load_checkpoint
from model.onnx_decoder import INPUTS, export_decoder
from model.prompt_encoder import Prompts
from model.sam import Sam


@dataclass(frozen=True)
class Exported:
    sam: Sam
    session: onnxruntime.InferenceSession

    def ask(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        named = {key: value.numpy() for key, value in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(output) for output in self.session.run(None, named)]


@pytest.fixture(scope="module", params=["random", "shipped"])
def exported(request: pytest.FixtureRequest) -> Exported:
    sam = tiny_sam(0) if request.param == "random" else load_checkpoint("sa-tiny").sam.eval()
    file = export_decoder(sam)
    return Exported(sam, onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]))


def prompts_of(sam: Sam, count: int, *, box: bool, mask: bool) -> tuple[Prompts, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    size, low_res = sam.config.image_size, sam.config.low_res_size
    coords = torch.rand(1, count, 2, generator=generator) * size
    labels = torch.randint(0, 2, (1, count), generator=generator)
    corners = torch.rand(1, 2, 2, generator=generator).sort(dim=1).values * size
    mask_input = torch.randn(1, 1, low_res, low_res, generator=generator) * 5
    prompts = Prompts(
        point_coords=coords,
        point_labels=labels,
        boxes=corners.flatten(1) if box else None,
        mask_input=mask_input if mask else None,
    )
    return prompts, mask_input


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize(("box", "mask"), [(False, False), (True, False), (False, True)])
def test_the_exported_decoder_answers_as_torch_does(
    exported: Exported, count: int, box: bool, mask: bool
) -> None:
    sam = exported.sam
    side = sam.config.embedding_size
    embedding = torch.randn(1, sam.config.embed_dim, side, side) * 0.3
    prompts, mask_input = prompts_of(sam, count, box=box, mask=mask)
    assert prompts.point_coords is not None
    assert prompts.point_labels is not None
    if prompts.boxes is not None:
        more, meaning = prompts.boxes.reshape(1, 2, 2), torch.tensor([[2, 3]])
    else:
        more, meaning = torch.zeros(1, 1, 2), torch.tensor([[-1]])
    masks, iou = exported.ask(
        embedding,
        torch.cat([prompts.point_coords, more], dim=1),
        torch.cat([prompts.point_labels, meaning], dim=1),
        mask_input,
        torch.tensor([float(mask)]),
    )
    with torch.inference_mode():
        single = sam.decode(embedding, prompts, multimask_output=False)
        several = sam.decode(embedding, prompts, multimask_output=True)
    expected = torch.cat([single.low_res_masks, several.low_res_masks], dim=1)
    assert masks.shape == expected.shape
    assert (masks - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)
    expected_iou = torch.cat([single.predicted_iou, several.predicted_iou], dim=1)
    assert (iou - expected_iou).abs().max() < 1e-4
    assert np.isfinite(masks.numpy()).all()
