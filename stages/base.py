"""What the engine may rely on: a stage turns one image into masks, and runs twice without harm."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stages.predictor import Image
from stages.records import MaskRecord


@dataclass(frozen=True)
class StageOutput:
    masks: tuple[MaskRecord, ...]
    drops: dict[str, int] = field(default_factory=dict)
    """Refused candidates by reason."""


class Stage(Protocol):
    """No I/O, no clock, no global state: the same image and generator give the same masks."""

    def run(self, image: Image, rng: np.random.Generator) -> StageOutput: ...


@dataclass(frozen=True)
class Provenance:
    """What every mask of a round has in common."""

    round: int
    checkpoint: str
    """Name and hash of the checkpoint that answers."""
