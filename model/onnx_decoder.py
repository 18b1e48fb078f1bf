"""The prompt encoder and mask decoder as one ONNX file, for annotators' pages.

Inputs and outputs have the names of the official SAM export, with two differences: all four masks
come out, so that the caller chooses, and they stay at low resolution, to be enlarged where they are
shown. One image and one prompt a call.

| input | shape | |
|---|---|---|
| image_embedding | (1, C, S/16, S/16) | |
| point_coords | (1, N, 2) | input frame |
| point_labels | (1, N) int64 | `PointLabel`; a box is two points, no box one padding point |
| mask_input | (1, 1, S/4, S/4) | logits of the answer before |
| has_mask_input | (1,) | 1 or 0 |

Outputs: low_res_masks (1, 4, S/4, S/4) logits, predicted_iou (1, 4). Output 0 is meant for prompts
without ambiguity, 1 to 3 are whole, part and subpart.
"""

import io
import warnings

import torch
from torch import Tensor, nn

from model.sam import Sam

INPUTS = ("image_embedding", "point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUTS = ("low_res_masks", "predicted_iou")


class OnnxDecoder(nn.Module):
    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(
        self,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        encoder, decoder = self.prompt_encoder, self.mask_decoder
        shown = encoder.mask_downscaling(mask_input)
        not_shown = encoder.no_mask_embed.weight[..., None, None]
        dense = torch.where(has_mask_input[:, None, None, None] > 0, shown, not_shown)
        tokens, upscaled = decoder.read(
            image_embedding + dense,
            encoder.dense_position_embedding(),
            encoder.embed_points(point_coords, point_labels),
        )
        predicted_iou, weights = decoder.predict(tokens, multimask_output=None)
        masks = weights @ upscaled.flatten(2)
        return torch.unflatten(masks, 2, (upscaled.shape[2], upscaled.shape[3])), predicted_iou


def export_decoder(sam: Sam) -> bytes:
    """The ONNX file of a model's decoder, about 16 MB."""
    config, side = sam.config, sam.config.embedding_size
    example = (
        torch.zeros(1, config.embed_dim, side, side),
        torch.zeros(1, 2, 2),
        torch.tensor([[1, -1]]),
        torch.zeros(1, 1, config.low_res_size, config.low_res_size),
        torch.zeros(1),
    )
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that follows it takes ten times as long for the same graph.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Using len to get tensor shape")
        torch.onnx.export(
            OnnxDecoder(sam).cpu().eval(),
            example,
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
        )
    return file.getvalue()
