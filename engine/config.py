"""EngineConfig: what a run is. Composes each owner's config; loads, checks and freezes YAML."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from engine import layout
from engine.corpus import CorpusConfig
from engine.dataset import MixConfig
from engine.errors import ConfigError
from engine.images import WorkSize
from engine.sources import CocoSource, ListedSource, SourceConfigs
from engine.store import Store
from model.detector import DetectorConfig, DetectorTrainingConfig
from model.training import TrainingConfig
from stages.annotator import SimulatedAnnotatorConfig
from stages.assisted_manual import AssistedManualConfig
from stages.fully_automatic import FullyAutomaticConfig
from stages.records import Record, StageName
from stages.semi_automatic import SemiAutomaticConfig


class RoundConfig(Record):
    stage: StageName
    source: str
    """Name of the source whose images are annotated."""
    images: PositiveInt | None = None
    """How many, none of which an earlier round took; None: all that are left."""
    retrain: bool = True
    """Train the next checkpoint on everything annotated so far."""
    promote: Literal["always", "if_better"] = "always"
    """`if_better`: the trained checkpoint must beat its parent on the held-out images, after one
    click and over more of them."""
    annotator: Literal["simulated", "people"] = "simulated"
    """Who answers the tasks of stages one and two: ground truth, or people in the browser."""
    review_share: float = Field(default=0.0, ge=0, le=1)
    """Of the images that people hand in: somebody else looks at them before the round goes on."""
    target_masks: PositiveInt | None = None
    """Of people: once they have handed in so many, images that nobody has begun are left out and
    the round goes on; None: when all are done."""


class RetrainingConfig(Record):
    training: TrainingConfig = TrainingConfig()
    mix: MixConfig = MixConfig()
    detector: DetectorConfig = DetectorConfig()
    """Its embed_dim is always that of the checkpoint."""
    detector_training: DetectorTrainingConfig = DetectorTrainingConfig()
    save_every_steps: PositiveInt = 500
    """A killed training goes on from the last multiple of this."""

    @model_validator(mode="after")
    def _is_no_pretraining(self) -> "RetrainingConfig":
        if self.training.self_report_weight:
            raise ValueError(
                f"training.self_report_weight is {self.training.self_report_weight}, expected 0: "
                "only a pretraining has that loss; iou_loss_weight is that of the predicted IoU"
            )
        return self


class EvaluationConfig(Record):
    sources: tuple[str, ...] | None = None
    """Whose held-out images to evaluate on; None: every source with ground truth."""
    max_images: PositiveInt | None = 500
    """The first of them by content hash, so that every round meets the same."""
    max_masks_per_image: PositiveInt | None = None
    """The largest of them; None: all."""


class ExecutionConfig(Record):
    """How a run uses its machines. It may change on resuming, since nothing here changes results,
    but for what a training draws: each of its `train_workers` draws for itself."""

    executor: Literal["ray", "local"] = "ray"
    workers: PositiveInt | None = None
    """Worker processes; None: as many as the cluster has CPUs (or GPUs) for."""
    threads_per_worker: PositiveInt = 1
    gpus_per_worker: float = Field(default=0.0, ge=0)
    train_workers: PositiveInt = 1
    train_threads: PositiveInt = 2
    tasks_url: str | None = None
    """SQLAlchemy URL of the annotation queue, of SQLite with an absolute path; None: SQLite in the
    run's folder."""
    lease_seconds: PositiveFloat = 60.0
    """Of a task that the simulated annotator works on, renewed while it does: so long a task of a
    killed run waits until it is worked on again."""
    max_attempts: PositiveInt = 3
    """Times an image may fail, alone, before it is given up; in a shard once more, at the end of
    the round's, if its file could not be had."""
    max_given_up: float = Field(default=0.1, ge=0, le=1)
    """Share of a round's images (but at least three) that may be given up before the run stops;
    of the images of an evaluation, the share (of few images: none) that figures may do without."""

    @field_validator("tasks_url")
    @classmethod
    def _is_one_queue_from_everywhere(cls, url: str | None) -> str | None:
        backend, _, place = (url or "").partition("://")
        if backend.startswith("sqlite") and not place.startswith("//"):
            raise ValueError(
                "expected an absolute path, as in sqlite:////mnt/disk/tasks.sqlite: any other is "
                "another database in every working directory"
            )
        return url

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_worker else "cpu"


class EngineConfig(Record):
    name: str = "run"
    seed: NonNegativeInt = 0
    checkpoint: str
    """Where the run starts: a name from model/checkpoints, a folder, or an official .pth file."""
    sources: SourceConfigs = Field(min_length=1)
    corpus: CorpusConfig = CorpusConfig()
    work_size: WorkSize = WorkSize()
    """Frame in which masks are made."""
    rounds: tuple[RoundConfig, ...] = Field(min_length=1)
    images_per_shard: PositiveInt = 256
    simulated_annotator: SimulatedAnnotatorConfig = SimulatedAnnotatorConfig()
    zoom_in: bool = False
    """Annotators, people or simulated, have small objects looked at twice
    (`stages/zoom_in.py`): better masks from fewer clicks, for another encoding of each."""
    snap: bool = False
    """Annotators, people or simulated, are answered in superpixels (`stages/snapped_upscale.py`):
    far fewer clicks where the model has seen little of the like. Automatic masks have their own."""
    assisted_manual: AssistedManualConfig = AssistedManualConfig()
    semi_automatic: SemiAutomaticConfig = SemiAutomaticConfig()
    fully_automatic: FullyAutomaticConfig = FullyAutomaticConfig()
    retraining: RetrainingConfig = RetrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _sources_exist(self) -> "EngineConfig":
        known = [source.name for source in self.sources]
        named = [round_config.source for round_config in self.rounds]
        for name in [*named, *(self.evaluation.sources or ())]:
            if name not in known:
                raise ValueError(f"no source is named {name!r}; the corpus has {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> "EngineConfig":
        images, workers = self.retraining.training.batch_images, self.execution.train_workers
        if images % workers:
            raise ValueError(
                f"retraining.training.batch_images is {images}, expected a multiple of the "
                f"{workers} of execution.train_workers"
            )
        return self

    @model_validator(mode="after")
    def _people_are_there(self) -> "EngineConfig":
        for index, mine in enumerate(self.rounds):
            manual = mine.stage is not StageName.FULLY_AUTOMATIC and mine.annotator == "people"
            if mine.review_share and not manual:
                raise ValueError(
                    f"round {index} has a review_share, but no people whose work could be "
                    "reviewed: give it `annotator: people`, or audit its masks with "
                    "`sa-engine audit`"
                )
            if mine.target_masks and not manual:
                raise ValueError(
                    f"round {index} has target_masks, but no people who could meet it: give it "
                    "`annotator: people`"
                )
        return self

    def snaps(self, stage: StageName) -> bool:
        """Whether a round of this stage makes masks of superpixels."""
        if stage is StageName.FULLY_AUTOMATIC:
            return self.fully_automatic.snap
        return self.snap or (stage is StageName.SEMI_AUTOMATIC and self.semi_automatic.snap)

    def snaps_clicks(self, stage: StageName) -> bool:
        """Whether annotators of such a round are answered in superpixels."""
        return self.snap and stage is not StageName.FULLY_AUTOMATIC

    def rescores(self, stage: StageName) -> bool:
        """Whether a round of this stage lets the scorer of masks predict their IoU."""
        automatic = self.fully_automatic
        return stage is StageName.FULLY_AUTOMATIC and automatic.snap and automatic.rescore

    @property
    def sha256(self) -> str:
        """Of everything that shapes the results and is not a default: a field that a later version
        adds leaves a run's hash, and its unfinished rounds, as they were. (A default must never
        change, for that would change what runs do under the same hash.)"""
        content = self.model_dump(mode="json", exclude={"execution"}, exclude_defaults=True)
        content["kinds"] = [source.kind for source in self.sources]  # each kind's own default
        canonical = json.dumps(content, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def round_folder(self, index: int) -> str:
        return layout.round_folder(index, self.rounds[index].stage)


def load_config(path: str) -> EngineConfig:
    """A YAML file, or by its bare name one that comes with the project (`demo`)."""
    packaged = files("configs") / f"{path}.yaml"
    try:
        text = (packaged if packaged.is_file() else Path(path)).read_text("utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text, names no file has
        names = sorted(p.name.removesuffix(".yaml") for p in files("configs").iterdir())
        shipped = ", ".join(name for name in names if "." not in name and "_" not in name[:1])
        raise ConfigError(
            f"cannot read config {path}: {getattr(error, 'strerror', None) or error}; give a YAML "
            f"file or one of {shipped}"
        ) from error
    return parse_config(text, path)


class _EveryKeyOnce(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML wants it so; PyYAML takes the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"{name} is given in line {lines[name]} and in line {line}")
            lines[name] = line
        return node


def parse_config(text: str, name: str) -> EngineConfig:
    try:
        given = yaml.load(text, _EveryKeyOnce)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{name} holds {type(given).__name__}, expected a mapping of fields")
    try:
        return EngineConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{name}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """A validation error in one line: field, value, what was expected."""
    problems = (
        f"{'.'.join(str(part) for part in problem['loc']) or 'config'}: {problem['msg']}"
        + (f" (got {problem['input']!r:.60})" if problem["type"] != "missing" else "")
        for problem in error.errors()
    )
    return "; ".join(problems)


def with_images(config: EngineConfig, source: ListedSource) -> EngineConfig:
    """The same run over other images.

    Stages one and two need true masks for the simulated annotator, and held-out images to evaluate
    on, so a source that brings none keeps the fully automatic rounds only, and all its images. All
    rounds have the one source; one that takes whatever there is comes after the others.
    """
    rounds = [
        round_config.model_copy(update={"source": source.name})
        for round_config in config.rounds
        if isinstance(source, CocoSource) or round_config.stage is StageName.FULLY_AUTOMATIC
    ]
    rounds.sort(key=lambda round_config: round_config.images is None)
    if not rounds:
        raise ConfigError(
            f"{source.name} has no annotations, and {config.name} has no fully automatic round; "
            "give a COCO-style JSON or another config"
        )
    changes: dict[str, Any] = {
        "name": source.name,
        "sources": [source.model_dump(mode="json")],
        "rounds": [round_config.model_dump(mode="json") for round_config in rounds],
        "evaluation": {"sources": None},
    }
    if not isinstance(source, CocoSource):
        changes["corpus"] = {"held_out_fraction": 0.0}
    return changed(config, changes)


def changed(config: EngineConfig, changes: dict[str, Any]) -> EngineConfig:
    """A config with nested fields replaced, checked anew."""
    try:
        return EngineConfig.model_validate(merged(config.model_dump(mode="json"), changes))
    except ValidationError as error:
        raise ConfigError(describe(error)) from error


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested fields replaced."""
    return base | {
        key: merged(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in changes.items()
    }


def freeze_config(store: Store, config: EngineConfig) -> None:
    """Record the resolved config, and an id for the run; a later run with another config is
    refused. Only `execution` may change, see `follow_execution`.

    Raises:
        ConfigError: with both values of every field that differs.
    """
    store.publish(layout.RUN_ID, uuid.uuid4().hex.encode())
    if store.publish(layout.CONFIG, _as_yaml(config)):
        return
    differences = list(_differences(_content(frozen_config(store)), _content(config)))
    if differences:
        raise ConfigError(
            f"cannot resume {store.uri}: {'; '.join(differences)}. "
            "Start a new run in another folder, or restore these values"
        )


def follow_execution(store: Store, config: EngineConfig) -> None:
    """Record how the run uses its machines now: who else serves it reads that there."""
    if frozen_config(store).execution != config.execution:
        store.replace(layout.CONFIG, _as_yaml(config))


def _as_yaml(config: EngineConfig) -> bytes:
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text.encode()


def frozen_config(store: Store) -> EngineConfig:
    try:
        text = store.read(layout.CONFIG).decode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{store.uri} is no run of this engine: it has no {layout.CONFIG}; "
            "give the folder that `sa-engine run --out` wrote"
        ) from error
    return parse_config(text, f"{store.uri}/{layout.CONFIG}")


def _content(config: EngineConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"execution"})


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{path}.{index}")
    elif before != now:
        yield f"{path} was {before}, is now {now}"
