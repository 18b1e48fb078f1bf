"""Image embeddings in a run's store, for training and for all annotators.

Keyed by the encoder's weights and the image's bytes, so checkpoints that share an encoder share
embeddings. In fp16: whoever makes one uses it as it is stored.
"""

import io

import numpy as np
from numpy.typing import NDArray

from engine import layout
from engine.store import Store

Embedding = NDArray[np.float16]
"""(1, C, h, w)"""


def load_embedding(store: Store, encoder_sha256: str, image_sha256: str) -> Embedding | None:
    """None when it is not stored."""
    if not has_embedding(store, encoder_sha256, image_sha256):
        return None
    path = layout.embedding_path(encoder_sha256, image_sha256)
    values: Embedding = np.load(io.BytesIO(store.read(path)))
    return values


def has_embedding(store: Store, encoder_sha256: str, image_sha256: str) -> bool:
    return store.exists(layout.embedding_path(encoder_sha256, image_sha256))


def store_embedding(
    store: Store, encoder_sha256: str, image_sha256: str, values: Embedding
) -> None:
    """One that is there already stays."""
    path = layout.embedding_path(encoder_sha256, image_sha256)
    store.publish_written(path, lambda file: np.save(file, values))
