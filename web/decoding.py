"""The decoder of a checkpoint, run here for pages that cannot decode by themselves."""

from functools import cached_property

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from engine.decoders import DecoderFile
from model.onnx_decoder import INPUTS


class DecoderSession:
    def __init__(self, file: DecoderFile) -> None:
        self.file = file

    def decode(
        self,
        embedding: NDArray[np.float16],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        mask_input: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """
        Args:
            embedding: (C, h, w)
            point_coords: (N, 2), input frame.
            mask_input: (s, s) logits of the answer before.

        Returns:
            Logits (4, s, s) and predicted IoU (4,).
        """
        side = self.file.low_res_size
        shown = np.zeros((1, 1, side, side), np.float32)
        if mask_input is not None:
            shown[0, 0] = mask_input
        inputs = (
            embedding[None].astype(np.float32),
            point_coords[None],
            point_labels[None],
            shown,
            np.asarray([mask_input is not None], np.float32),
        )
        masks, predicted_iou = self._session.run(None, dict(zip(INPUTS, inputs, strict=True)))
        return masks[0], predicted_iou[0]

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        return onnxruntime.InferenceSession(
            self.file.content, options, providers=["CPUExecutionProvider"]
        )
