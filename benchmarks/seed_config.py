"""What a training of `benchmarks.seed_checkpoint` is made of, as its YAML has it."""

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from model.joint_training import JointConfig
from model.pretraining import PretrainingConfig
from model.sam import SamConfig
from model.tiny_vit import TinyViTConfig

SHIPPED = Path(__file__).with_name("seed_checkpoint.yaml")


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HeldOut(Part):
    """Images that are for evaluation only."""

    splits: tuple[str, ...] = ("val", "test")
    """Those whose own split in the JSON begins with one of these."""
    hash_share: float = Field(default=0.1, ge=0, le=1)
    """Of the others those whose first 8 hex digits of the file's sha256, over 2^32, lie below."""

    def holds(self, sha256: str, split: str) -> bool:
        return split.startswith(self.splits) or int(sha256[:8], 16) / 2**32 < self.hash_share


class Augmentation(Part):
    paste_probability: float = Field(ge=0, le=1)
    """Of regions of another image over this one."""
    whole_probability: float = Field(ge=0, le=1)
    """Of the whole image at the size at which it is seen when used, without jitter."""
    near_probability: float = Field(default=0.0, ge=0, le=1)
    """Of the window around a small region, as a second look sees it (`stages/zoom_in.py`)."""


class Phase(Part):
    """Trains either the encoder alone or everything together."""

    name: str = Field(pattern=r"^[\w-]+$")
    image_size: PositiveInt
    """Input side in pixels."""
    batch_images: PositiveInt
    """Of a step, shared by all processes."""
    clicks_per_image: PositiveInt
    augmentation: Augmentation
    scenes: float = Field(default=0.25, ge=0)
    """Share of the drawn scenes in the samples, over that of one folder of photographs."""
    last_window: PositiveInt = 24
    """Of the image encoder's last stage; larger than the phase before, its biases are resampled."""
    begins_with: PositiveInt = 1
    """So many phases before it, whose averaged weights are averaged once more for its beginning."""
    ends_with: PositiveInt = 1
    """So many phases, itself the last, whose averaged weights are averaged for the checkpoint."""
    encoder: PretrainingConfig | None = None
    joint: JointConfig | None = None

    @model_validator(mode="after")
    def _trains_one_thing(self) -> Self:
        if (self.encoder is None) == (self.joint is None):
            raise ValueError(f"{self.name} has to have either `encoder` or `joint`")
        return self

    @property
    def training(self) -> PretrainingConfig | JointConfig:
        training = self.encoder or self.joint
        assert training is not None
        return training


class SeedConfig(Part):
    embed_dims: tuple[int, int, int, int]
    """Widths of the TinyViT's stages."""
    num_heads: tuple[int, int, int, int]
    held_out: HeldOut = HeldOut()
    min_votes: PositiveInt = 2
    """Of regions that are taught, and evaluated on, where the JSON has `votes`: what one annotator
    alone drew is a matter of taste, most often a small one."""
    min_area: int = Field(default=100, ge=0)
    """Pixels of masks that are evaluated on."""
    scenes: PositiveInt = 1500
    """Drawn once, in the work folder."""
    save_every_steps: PositiveInt = 100
    evaluate_every_steps: PositiveInt = 400
    phases: tuple[Phase, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _phases_stand_on_those_before(self) -> Self:
        first, *others = self.phases
        if first.encoder is None:
            raise ValueError(f"the first phase, {first.name}, has to train the `encoder`")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"two phases have one name: {', '.join(names)}")
        if others and others[0].last_window != first.last_window:
            raise ValueError(f"{others[0].name} has to have the last_window of {first.name}")
        for index, phase in enumerate(others, 1):
            if phase.joint is None:
                raise ValueError(f"{phase.name}: only the first phase trains the `encoder` alone")
            if phase.begins_with >= max(index, 2) or phase.ends_with > index:
                raise ValueError(f"{phase.name} averages more joint phases than there are")
            for averaged in (self.before(phase), self.ending_with(phase)):
                if len({phase.last_window for phase in averaged}) > 1:
                    raise ValueError(f"{phase.name} averages phases of different last_window")
        return self

    def before(self, phase: Phase) -> tuple[Phase, ...]:
        """The phases whose averaged weights one that is not the first begins with."""
        index = self.phases.index(phase)
        return self.phases[index - phase.begins_with : index]

    def ending_with(self, phase: Phase) -> tuple[Phase, ...]:
        """The phases whose averaged weights are the checkpoint when this one was the last."""
        end = self.phases.index(phase) + 1
        return self.phases[end - phase.ends_with : end]

    def sam(self, phase: Phase) -> SamConfig:
        encoder = TinyViTConfig(
            embed_dims=self.embed_dims,
            num_heads=self.num_heads,
            window_sizes=(8, 8, 8, phase.last_window),
        )
        return SamConfig(image_encoder=encoder, image_size=phase.image_size)


def load_seed_config(path: Path = SHIPPED) -> SeedConfig:
    return SeedConfig.model_validate(yaml.safe_load(path.read_text()))
