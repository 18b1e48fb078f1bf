"""The ONNX decoders of a run: one for each checkpoint that people annotate with, or may.

A decoder's file says which checkpoint it was made of, and which encoder's embeddings it reads: who
answers clicks needs nothing else of the checkpoint.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from engine import layout
from engine.context import load_run_checkpoint
from engine.errors import CorruptFileError, EngineError, fault
from engine.store import Store
from model.checkpoint import Checkpoint, encoder_sha256
from model.onnx_decoder import INPUTS, OUTPUTS, export_decoder
from model.sam import STRIDE

_CHECKPOINT, _ENCODER = "checkpoint", "encoder_sha256"
"""Keys of a file's metadata."""


@dataclass(frozen=True)
class DecoderFile:
    content: bytes
    """See `model/onnx_decoder.py` for its inputs and outputs."""
    checkpoint: str
    """Label: name and hash."""
    encoder_sha256: str
    embedding_shape: tuple[int, int, int]
    """(C, h, w)"""
    low_res_size: int
    """Side of the logits that come out and may go in again."""

    @property
    def image_size(self) -> int:
        """Side of the input frame."""
        return self.embedding_shape[1] * STRIDE


def ensure_decoder(store: Store, checkpoint: str) -> None:
    """Publish the decoder of a checkpoint of the run, unless it is there.

    Args:
        checkpoint: path within the run's store.
    """
    path = layout.decoder_path(checkpoint)
    if not store.exists(path):
        store.publish(path, _export(load_run_checkpoint(store, checkpoint)))


def load_decoder(store: Store, checkpoint: str) -> DecoderFile:
    """
    Args:
        checkpoint: its label, or its path within the run's store.

    Raises:
        EngineError: the run has not exported it.
        CorruptFileError: it is no decoder, or cut off.
    """
    path = layout.decoder_path(checkpoint.partition("@")[0])
    try:
        content = store.read(path)
    except FileNotFoundError as error:
        raise EngineError(
            f"{store.uri} has no {path}: start `sa-engine run` with the run's config again, which "
            "makes it"
        ) from error
    try:
        return _parse(content)
    except Exception as error:  # protobuf's decoders each raise their own
        raise CorruptFileError(f"{path}: not a whole decoder ({error}); delete it") from error


def decoder_faults(store: Store, checkpoints: Iterable[str]) -> Iterator[str]:
    """One line for each checkpoint whose decoder is missing, damaged, or another one's."""
    for checkpoint in checkpoints:
        try:
            decoder = load_decoder(store, checkpoint)
            label = load_run_checkpoint(store, checkpoint).label
        except (EngineError, OSError) as error:
            yield fault(checkpoint, error)
            continue
        if decoder.checkpoint != label:
            path = layout.decoder_path(checkpoint)
            yield f"{path}: made of {decoder.checkpoint}, the checkpoint is {label}; delete it"


def _export(checkpoint: Checkpoint) -> bytes:
    model = onnx.load_from_string(export_decoder(checkpoint.sam))
    metadata = {_CHECKPOINT: checkpoint.label, _ENCODER: encoder_sha256(checkpoint.sam)}
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def _parse(content: bytes) -> DecoderFile:
    model = onnx.load_from_string(content)
    shapes = {
        value.name: tuple(int(axis.dim_value) for axis in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
    if missing := {*INPUTS, *OUTPUTS} - shapes.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _, channels, height, width = shapes["image_embedding"]
    return DecoderFile(
        content=content,
        checkpoint=metadata[_CHECKPOINT],
        encoder_sha256=metadata[_ENCODER],
        embedding_shape=(channels, height, width),
        low_res_size=shapes["mask_input"][-1],
    )
