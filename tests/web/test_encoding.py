"""The encoder behind the pages."""

import pickle

import numpy as np

from engine.corpus import Corpus
from engine.embeddings import load_embedding
from engine.errors import UnreadableImageError
from tiny_runs import TinyRun
from web.encoding import Encoder, Seen

CHECKPOINT = "tiny@0123"


def test_images_embedded_together_are_those_embedded_alone_and_are_stored(
    finished: TinyRun,
) -> None:
    rows = list(Corpus(finished.store).rows(range(4)))
    together = Encoder(finished.store, finished.config)
    gone = rows[1].model_copy(update={"uri": "nowhere.png", "sha256": "0" * 64})
    answers = together.embed_many(
        CHECKPOINT, [Seen(row) for row in (rows[0], gone, rows[2], rows[0])]
    )
    assert isinstance(answers[1], UnreadableImageError)
    assert answers[0] is answers[3]
    alone = Encoder(finished.store, finished.config)
    for answer, row in ((answers[0], rows[0]), (answers[2], rows[2])):
        assert isinstance(answer, np.ndarray)
        np.testing.assert_allclose(alone(CHECKPOINT, Seen(row)), answer, rtol=1e-2, atol=1e-3)
        key = together._context_of(CHECKPOINT).encoder_sha256
        stored = load_embedding(finished.store, key, row.sha256)
        assert stored is not None
        np.testing.assert_array_equal(stored, answer)


def test_an_unreadable_image_is_told_from_one_process_to_another() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("too_large", "9 GB")))
    assert (error.status, error.reason, str(error)) == ("too_large", "9 GB", "9 GB")
