"""Train the shipped checkpoint `sa-tiny` from nothing.

    python -m benchmarks.seed_checkpoint --photographs bsds coco --scenes 1500 --work runs/seed \
        --out model/checkpoints/sa-tiny

Phases: the encoder alone on pixel embeddings, then everything together at growing input sizes. Each
phase is resumed where it was stopped when the same command is given again. `log.jsonl` in the work
folder holds losses and held-out figures. Folders of photographs are COCO-style: `images/` beside
`instances.json`; what is held out of them, see `benchmarks/seed_data.py`, is never trained on.

A process computes on one core. Under `torchrun --standalone --nproc-per-node 2 -m
benchmarks.seed_checkpoint` two of them share the images of a step, in phases where these are even.
"""

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from benchmarks.seed_data import (
    MILD,
    NEAR,
    STRONG,
    Augmentation,
    ClickBatches,
    LabelledImage,
    SampleSource,
    read_folder,
)
from engine.scenes import write_scenes
from model.checkpoint import Lineage, save_checkpoint
from model.interactions import InteractionConfig
from model.joint_training import JointConfig, JointModel, JointTrainer
from model.optimizer import process_rank
from model.pretraining import Pretrainer, PretrainingConfig
from model.sam import Sam, SamConfig
from model.tiny_vit import TinyViTConfig, fit_attention_biases
from stages.evaluation import ClickScores, evaluate_image
from stages.predictor import Predictor, embed
from stages.rle import decode_rle

log = logging.getLogger("seed_checkpoint")

EMBEDDER = PretrainingConfig(steps=1000, final_share=0.8)
SAVE_EVERY = 100
EVALUATE_EVERY = 400


@dataclass(frozen=True)
class Phase:
    name: str
    image_size: int
    batch_images: int
    clicks_per_image: int
    config: PretrainingConfig | JointConfig
    last_window: int = 24
    """Of the image encoder's last stage; larger than the phase before, its biases are resampled."""
    augmentation: Augmentation = STRONG
    scenes: float = 0.25
    """Share of the drawn scenes in the samples, over that of one folder of photographs."""
    begins_with: int = 1
    """So many phases before it, whose averaged weights are averaged once more for its beginning."""
    ends_with: int = 1
    """So many phases, itself the last, whose averaged weights are averaged for the checkpoint."""

    @property
    def sam(self) -> SamConfig:
        encoder = TinyViTConfig(
            embed_dims=(48, 96, 160, 320),
            num_heads=(2, 3, 5, 5),
            window_sizes=(8, 8, 8, self.last_window),
        )
        return SamConfig(image_encoder=encoder, image_size=self.image_size)


INTERACTIONS = InteractionConfig(
    num_corrections=1,
    num_repeats=0,
    box_probability=0.25,
    pixel_loss="balanced_bce",
    pixel_loss_weight=1.0,
    iou_loss_weight=2.0,
    precision="bf16",
)

FINISHING = INTERACTIONS.model_copy(
    update={"num_corrections": 2, "pixel_loss": "focal", "pixel_loss_weight": 10.0}
)
LONG = FINISHING.model_copy(update={"box_probability": 0.15, "iou_loss_weight": 12.0})
LOOKING = LONG.model_copy(
    update={"iou_loss": "absolute", "iou_loss_weight": 4.0, "self_report_weight": 2.0}
)
# The absolute error's gradient does not shrink with the error: three quarters of the noise in the
# encoder's gradient were its own (docs/log.md).
STEADY = LOOKING.model_copy(
    update={
        "num_corrections": 3,
        "iou_loss": "squared",
        "iou_loss_weight": 4.0,
        "self_report_weight": 1.0,
    }
)
PHASES = (
    Phase("encoder", 256, 6, 24, EMBEDDER),
    Phase(
        "joint-256",
        256,
        6,
        24,
        JointConfig(
            steps=600,
            learning_rate=6e-4,
            final_share=0.4,
            warmup_steps=30,
            frozen_steps=250,
            prompts_per_image=5,
            interactions=INTERACTIONS,
        ),
    ),
    Phase(
        "joint-384",
        384,
        4,
        24,
        JointConfig(
            steps=260,
            learning_rate=4e-4,
            warmup_steps=20,
            prompts_per_image=4,
            interactions=FINISHING,
        ),
    ),
    Phase(
        "long-384",
        384,
        3,
        24,
        JointConfig(
            steps=1200,
            learning_rate=2.5e-4,
            warmup_steps=40,
            prompts_per_image=6,
            interactions=LONG,
        ),
    ),
    Phase(
        "looking-384",
        384,
        3,
        12,
        JointConfig(
            steps=1350,
            learning_rate=1.5e-4,
            warmup_steps=60,
            prompts_per_image=8,
            embedding_weight=0.0,
            interactions=LOOKING,
        ),
    ),
    Phase(
        "sharp-512",
        512,
        2,
        12,
        JointConfig(
            steps=1600,
            learning_rate=2e-4,
            warmup_steps=60,
            prompts_per_image=8,
            embedding_weight=0.0,
            interactions=LOOKING,
        ),
        last_window=32,
    ),
    Phase(
        "wide-512",
        512,
        4,
        12,
        JointConfig(
            steps=1700,
            learning_rate=3e-4,
            warmup_steps=80,
            prompts_per_image=8,
            embedding_weight=0.0,
            correct_every=4,
            interactions=LOOKING.model_copy(update={"num_corrections": 3}),
        ),
        last_window=32,
        augmentation=MILD,
        scenes=0.1,
    ),
    Phase(
        "steady-512",
        512,
        4,
        12,
        JointConfig(
            steps=2000,
            learning_rate=4e-5,
            warmup_steps=60,
            prompts_per_image=8,
            embedding_weight=0.0,
            correct_every=3,
            interactions=STEADY,
        ),
        last_window=32,
        augmentation=MILD,
        scenes=0.1,
        begins_with=2,
    ),
    Phase(
        "near-512",
        512,
        4,
        12,
        JointConfig(
            steps=700,
            learning_rate=5e-5,
            warmup_steps=50,
            prompts_per_image=8,
            embedding_weight=0.0,
            correct_every=3,
            interactions=STEADY,
        ),
        last_window=32,
        augmentation=NEAR,
        scenes=0.1,
        ends_with=2,
    ),
)


@dataclass(frozen=True)
class Data:
    photographs: Sequence[Sequence[LabelledImage]]
    scenes: Sequence[LabelledImage]
    held_out: dict[str, Sequence[LabelledImage]]


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    data = gather(arguments)
    for phase in PHASES:
        if arguments.stop_after in {p.name for p in PHASES[: PHASES.index(phase)]}:
            break
        run_phase(phase, data, arguments.work, arguments.seed)
    if arguments.out is not None and process_rank() == 0:
        export(arguments.work, arguments.out, data)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, nargs="+", required=True)
    parser.add_argument("--scenes", type=int, default=1500, help="how many scenes to draw")
    parser.add_argument("--work", type=Path, required=True, help="state, drawn scenes and log")
    parser.add_argument("--out", type=Path, help="new checkpoint folder, written at the end")
    parser.add_argument("--stop-after", choices=[phase.name for phase in PHASES])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def gather(arguments: argparse.Namespace) -> Data:
    arguments.work.mkdir(parents=True, exist_ok=True)
    scenes = arguments.work / "scenes"
    if process_rank() == 0 and not (scenes / "instances.json").exists():
        write_scenes(scenes, arguments.seed, arguments.scenes, (360, 480))
    wait_for_all()
    # A region that one annotator alone drew is a matter of taste, most often a small one.
    photographs = [
        read_folder(folder, held_out=False, min_votes=2) for folder in arguments.photographs
    ]
    held_out: dict[str, Sequence[LabelledImage]] = {
        folder.name: read_folder(folder, held_out=True, min_votes=2)
        for folder in arguments.photographs
    }
    return Data(photographs, read_folder(scenes, held_out=False), held_out)


def run_phase(phase: Phase, data: Data, work: Path, seed: int) -> None:
    torch.manual_seed(seed)
    state_file = work / f"{phase.name}.pt"
    trainer = new_trainer(phase, work)
    if state_file.exists():
        trainer.load_state_dict(torch.load(state_file, weights_only=True))
        log.info("%s: resumed at step %d", phase.name, trainer.step_count)
    if trainer.step_count >= phase.config.steps:
        return
    rank, share = process_rank(), images_of_each(phase)
    collections = [(1.0, images) for images in data.photographs]
    collections.append((phase.scenes * len(collections), data.scenes))
    batches = ClickBatches(
        SampleSource(collections, phase.image_size, phase.augmentation),
        seed=seed + 1000 * PHASES.index(phase),
        first=trainer.step_count,
        places=range(rank * share, (rank + 1) * share),
        clicks=phase.clicks_per_image,
    )
    loader = iter(
        torch.utils.data.DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    )
    sums: Counter[str] = Counter()
    started = time.monotonic()
    while trainer.step_count < phase.config.steps:
        step = trainer.step_count
        generator = torch.Generator().manual_seed((seed + 1000 * rank) * 1_000_003 + step)
        sums.update(trainer.step(next(loader), generator))
        step += 1
        if rank > 0:
            continue
        if step % 25 == 0:
            figures = {name: value / 25 for name, value in sums.items()}
            figures["seconds"] = (time.monotonic() - started) / 25
            write_line(work, phase, step, figures)
            sums.clear()
            started = time.monotonic()
        if step % SAVE_EVERY == 0 or step == phase.config.steps:
            save_state(trainer.state_dict(), state_file)
        if step % EVALUATE_EVERY == 0 or step == phase.config.steps:
            if isinstance(trainer, JointTrainer) and trainer.config.prompts_per_image:
                write_line(work, phase, step, held_out_figures(trainer.averaged.sam, data))
            started = time.monotonic()
    wait_for_all()


def images_of_each(phase: Phase) -> int:
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if phase.batch_images % processes:
        raise SystemExit(
            f"{phase.name} takes {phase.batch_images} images a step, which {processes} processes "
            "cannot share evenly: run this phase with fewer, and the same command goes on"
        )
    return phase.batch_images // processes


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def new_trainer(phase: Phase, work: Path) -> Pretrainer | JointTrainer:
    """A phase begins with the averaged weights that the one before it ended with."""
    sam = Sam(phase.sam)
    index = PHASES.index(phase)
    before = None
    if index > 0:
        before = averaged_weights(PHASES[index - phase.begins_with : index], work)
    if isinstance(phase.config, PretrainingConfig):
        return Pretrainer(JointModel(sam, EMBEDDER).embedder, phase.config)
    model = JointModel(sam, EMBEDDER)
    if before is not None and index == 1:
        model.start_from(before)
    elif before is not None:
        model.load_state_dict(fit_attention_biases(before, model.state_dict()))
    return JointTrainer(model, phase.config)


def averaged_weights(phases: Sequence[Phase], work: Path) -> dict[str, Tensor]:
    """What these phases ended with, averaged."""
    files = [work / f"{phase.name}.pt" for phase in phases]
    return mean_weights([torch.load(file, weights_only=True)["averaged"] for file in files])


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of states of the same keys; counters are those of the last."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if last.is_floating_point()
        else last
        for name, last in states[-1].items()
    }


def held_out_figures(
    sam: Sam, data: Data, max_images: int = 12, max_masks: int = 8
) -> dict[str, float]:
    """Click scores on a few held-out images of every folder."""
    figures: dict[str, float] = {}
    for name, images in data.held_out.items():
        scores = ClickScores()
        for image in images[:max_images]:
            with Image.open(image.path) as file:
                pixels = np.asarray(file.convert("RGB"))
            predictor = Predictor(sam, image.size_hw, embed(sam, pixels))
            truths = [mask for mask in map(decode_rle, image.rles) if mask.sum() >= 100]
            scores += evaluate_image(predictor, truths[:: max(1, len(truths) // max_masks)])
        means = scores.means()
        figures |= {
            f"{name}_oracle": means.miou_1_click_oracle,
            f"{name}_1": means.miou_1_click,
            f"{name}_5": means.miou_5_clicks,
            f"{name}_head_error": means.iou_head_error,
        }
    return figures


def export(work: Path, directory: Path, data: Data) -> None:
    """Write the averaged weights of the last phase that was run, with their figures."""
    phase = next(p for p in reversed(PHASES) if (work / f"{p.name}.pt").exists())
    state = torch.load(work / f"{phase.name}.pt", weights_only=True)
    end = PHASES.index(phase) + 1
    model = JointModel(Sam(phase.sam), EMBEDDER)
    model.load_state_dict(averaged_weights(PHASES[end - phase.ends_with : end], work))
    sam = model.sam.eval()
    lineage = Lineage(
        parent="",
        round=0,
        stage="pretraining",
        steps=state["step_count"] + sum(p.config.steps for p in PHASES[: PHASES.index(phase)]),
        metrics=held_out_figures(sam, data),
    )
    save_checkpoint(sam, directory, lineage, dtype=torch.float16)


def save_state(state: dict[str, object], path: Path) -> None:
    staged = path.with_suffix(".staged")
    torch.save(state, staged)
    staged.replace(path)


def write_line(work: Path, phase: Phase, step: int, figures: dict[str, float]) -> None:
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    line = {"time": time.time(), "phase": phase.name, "step": step, **rounded}
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info("%s %d %s", phase.name, step, " ".join(f"{k}={v}" for k, v in rounded.items()))


if __name__ == "__main__":
    main()
