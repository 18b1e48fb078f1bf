"""What a finished round leaves behind: files that would only be read by what is over.

All of it can be made again from what stays, so removing too much costs time and nothing else.
"""

from engine import layout
from engine.context import load_run_checkpoint
from engine.store import Store
from model.checkpoint import encoder_sha256


def remove_leftovers(store: Store, checkpoint: str) -> list[str]:
    """Remove embeddings by encoders other than this checkpoint's, and states of ended trainings.

    Returns:
        The folders that are gone.
    """
    sam = load_run_checkpoint(store, checkpoint).sam
    current = layout.embeddings_folder(encoder_sha256(sam))
    gone = [folder for folder in store.folders(layout.EMBEDDINGS) if folder != current]
    gone += [
        folder
        for folder in store.folders(layout.TRAINING)
        if store.has_folder(layout.trained_path(folder))
    ]
    for folder in gone:
        store.remove_folder(folder)
    return gone
