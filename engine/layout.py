"""Where everything lies within a run's folder. All paths are relative to the run's store."""

import re

from stages.records import StageName

CONFIG = "config.yaml"
RUN_ID = "run_id"
ROUNDS = "rounds"
START = "start.json"
"""The checkpoint that the run began with, and how good it is."""
EMBEDDINGS = "embeddings"
TRAINING = "training"
TASKS = "tasks.sqlite"
REPORT = "report"


def round_folder(index: int, stage: StageName) -> str:
    return f"{ROUNDS}/{index:02d}-{stage}"


def plan_path(folder: str) -> str:
    return f"{folder}/plan.parquet"


def shards_folder(folder: str) -> str:
    return f"{folder}/shards"


def proposals_folder(folder: str) -> str:
    """Shards of prefilled masks, made before annotators begin."""
    return f"{folder}/proposals"


def shard_path(shards: str, shard: int, part: int | None = None) -> str:
    """Of a whole shard, or of one image of it that is worked on alone."""
    if part is None:
        return f"{shards}/shard-{shard:06d}.parquet"
    return f"{parts_folder(shards, shard)}/image-{part:06d}.parquet"


def parts_folder(shards: str, shard: int) -> str:
    return f"{shards}-alone/shard-{shard:06d}"


def shard_of(path: str) -> int | None:
    """The number of the whole shard at a path; None for any other file."""
    number = re.fullmatch(r"shard-(\d{6,})\.parquet", path.rpartition("/")[2])
    return None if number is None else int(number[1])


def recall_path(folder: str) -> str:
    """How good the detector of a semi-automatic round is."""
    return f"{folder}/detector.json"


def manifest_path(folder: str) -> str:
    return f"{folder}/manifest.json"


def outcome_path(folder: str) -> str:
    return f"{folder}/outcome.json"


def decoder_path(checkpoint: str) -> str:
    """The ONNX decoder of a checkpoint, for annotators' pages."""
    return f"decoders/{checkpoint.rpartition('/')[2]}.onnx"


def checkpoint_path(name: str) -> str:
    return f"checkpoints/{name}"


def round_checkpoint(index: int) -> str:
    """Name of the checkpoint that a round trains."""
    return f"round-{index:02d}"


def is_round_checkpoint(name: str) -> bool:
    return re.fullmatch(r"round-\d+", name) is not None


def is_checkpoint(path: str) -> bool:
    """Whether a path is one of the run's own, not the name of a checkpoint from elsewhere."""
    return path.startswith("checkpoints/")


def detector_path(name: str) -> str:
    return f"detectors/{name}"


def embeddings_folder(encoder_sha256: str) -> str:
    return f"{EMBEDDINGS}/{encoder_sha256[:16]}"


def embedding_path(encoder_sha256: str, image_sha256: str) -> str:
    return f"{embeddings_folder(encoder_sha256)}/{image_sha256[:2]}/{image_sha256}.npy"


def training_folder(target: str, content_sha256: str) -> str:
    """Of the states of the training that makes `target`, a checkpoint or a detector."""
    return f"{TRAINING}/{target.replace('/', '-', 1)}-{content_sha256[:12]}"


def trained_path(training_folder: str) -> str:
    """What such a training makes."""
    name, _, _ = training_folder.removeprefix(f"{TRAINING}/").rpartition("-")
    return name.replace("-", "/", 1)
