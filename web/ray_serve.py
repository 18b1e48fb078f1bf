"""The annotation server on Ray Serve: replicas that answer pages, and others that embed images.

    serve run web.ray_serve:application run=s3://bucket/run
    serve deploy serve.yaml

All state lies in the run's database and store, so a page may meet another replica with each
request. The replicas that answer pages hold no model: what nobody has embedded before they ask of
the encoders, which embed what is asked at the same time together, and store it for all.
"""

import asyncio
import logging
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from engine.config import frozen_config
from engine.embeddings import Embedding
from engine.errors import EngineError, ImageError
from engine.store import open_store
from stages.records import Record
from web.encoding import Encoder, Seen
from web.serve import open_app, require_page

log = logging.getLogger(__name__)

APPLICATION = "annotation"
"""Name under which serve.yaml deploys it."""
EMBED_SECONDS = 60.0
"""For one attempt at an image, also while a new replica starts."""
EMBED_ATTEMPTS = 3


class Settings(Record):
    """Arguments of the application, in serve.yaml or behind `serve run`."""

    run: str
    """URI of the run's folder, as every machine reaches it."""
    secure_cookies: bool = True
    """False only where no TLS proxy stands in front, on one machine."""


@dataclass(frozen=True)
class Question:
    checkpoint: str
    """Label."""
    seen: Seen


@serve.deployment(
    name="encoder",
    max_ongoing_requests=64,
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8},
    user_config={"max_batch_size": 8, "batch_wait_seconds": 0.02},
)
class EncoderReplica:
    def __init__(self, run: str) -> None:
        store = open_store(run)
        device = "cuda" if torch.cuda.is_available() else "cpu"  # as Ray has given to this replica
        self._encoder = Encoder(store, frozen_config(store), device=device)
        self._batches: Counter[int] = Counter()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes up a changed serve.yaml without a restart."""
        self.embed.set_max_batch_size(int(user_config["max_batch_size"]))
        self.embed.set_batch_wait_timeout_s(float(user_config["batch_wait_seconds"]))
        torch.set_num_threads(int(user_config.get("threads", torch.get_num_threads())))

    @serve.batch  # type: ignore[untyped-decorator]
    async def embed(self, questions: list[Question]) -> list[Embedding | ImageError]:
        """An error is an answer too: the other images of the batch have theirs."""
        self._batches[len(questions)] += 1
        return await asyncio.to_thread(self._answer, questions)

    def batches(self) -> dict[int, int]:
        """How many batches there were so far, by their size."""
        return dict(self._batches)

    def _answer(self, questions: list[Question]) -> list[Embedding | ImageError]:
        answers: dict[int, Embedding | ImageError] = {}
        for checkpoint in {question.checkpoint for question in questions}:
            mine = [n for n, question in enumerate(questions) if question.checkpoint == checkpoint]
            seen = [questions[number].seen for number in mine]
            answers |= zip(mine, self._encoder.embed_many(checkpoint, seen), strict=True)
        return [answers[number] for number in range(len(questions))]


class RemoteEncoder:
    """The encoder replicas, as a desk asks for an embedding: from a thread, one image a call."""

    def __init__(self, encoders: DeploymentHandle) -> None:
        self._encoders = encoders

    def __call__(self, checkpoint: str, seen: Seen) -> Embedding:
        """
        Raises:
            ImageError: it cannot be read.
            EngineError: no replica answers, or each died with this image in hand.
        """
        error: Exception | None = None
        for _ in range(EMBED_ATTEMPTS):
            try:
                question = Question(checkpoint, seen)
                answer = self._encoders.embed.remote(question).result(timeout_s=EMBED_SECONDS)
            except (RayError, RayServeException, TimeoutError) as failure:
                reason = " ".join(str(failure).split())
                log.warning("image=%d encoder: %s", seen.row.image_id, reason)
                error = failure
                continue
            if isinstance(answer, ImageError):
                raise answer
            values: Embedding = answer
            return values
        raise EngineError(f"image {seen.row.image_id} is not embedded yet; try again") from error


@serve.deployment(name="pages", num_replicas=2, max_ongoing_requests=100)
@serve.ingress()
class PagesReplica:
    def __init__(self, settings: Settings, encoders: DeploymentHandle) -> None:
        self._open = ExitStack()
        self._app = self._open.enter_context(
            open_app(
                open_store(settings.run),
                embed=RemoteEncoder(encoders),
                secure_cookies=settings.secure_cookies,
            )
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def __del__(self) -> None:
        self._open.close()


def application(settings: Settings) -> Application:
    """What `serve run` and `serve deploy` build."""
    require_page()
    encoders = EncoderReplica.bind(settings.run)  # type: ignore[attr-defined]
    return PagesReplica.bind(settings, encoders)  # type: ignore[attr-defined]
