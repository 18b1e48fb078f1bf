"""Train the shipped checkpoint `sa-tiny` from nothing.

    python -m benchmarks.seed_checkpoint --photographs bsds coco --work runs/seed \
        --out sa-tiny --seed 11

Phases, by `seed_checkpoint.yaml` or a config of your own (`--config`): the encoder alone on pixel
embeddings, then everything together at growing input sizes. Each phase is resumed where it was
stopped when the same command is given again. `log.jsonl` in the work folder holds losses and
held-out figures. Folders of photographs are COCO-style: `images/` beside `instances.json`; what the
config holds out of them is never trained on.

A process computes on one core. Under `torchrun --standalone --nproc-per-node 2 -m
benchmarks.seed_checkpoint` two of them share the images of a step, in phases where these are even.
"""

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from benchmarks.seed_config import SHIPPED, Phase, SeedConfig, load_seed_config
from benchmarks.seed_data import ClickBatches, LabelledImage, SampleSource, read_folder
from engine.scenes import write_scenes
from model.checkpoint import Lineage, save_checkpoint
from model.joint_training import JointModel, JointTrainer
from model.optimizer import process_rank
from model.pretraining import ClickBatch, Pretrainer
from model.sam import Sam
from model.tiny_vit import fit_attention_biases
from stages.evaluation import ClickScores, evaluate_image
from stages.predictor import Predictor, embed
from stages.rle import decode_rle

log = logging.getLogger("seed_checkpoint")

LOG_EVERY_STEPS = 25


@dataclass(frozen=True)
class Data:
    photographs: Sequence[Sequence[LabelledImage]]
    scenes: Sequence[LabelledImage]
    held_out: dict[str, Sequence[LabelledImage]]


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    if options.out is not None and options.out.exists():
        raise SystemExit(f"--out {options.out} is there already")
    training = Training(load_seed_config(options.config), options.work, options.seed)
    names = [phase.name for phase in training.config.phases]
    if options.stop_after not in (None, *names):
        raise SystemExit(f"--stop-after {options.stop_after}: phases are {', '.join(names)}")
    data = training.gather(options.photographs)
    for phase in training.config.phases:
        training.run_phase(phase, data)
        if phase.name == options.stop_after:
            break
    if options.out is not None and process_rank() == 0:
        training.export(phase, options.out, data)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True, help="state, drawn scenes and log")
    parser.add_argument("--out", type=Path, help="new checkpoint folder, written at the end")
    parser.add_argument("--config", type=Path, default=SHIPPED)
    parser.add_argument("--stop-after", metavar="PHASE")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Training:
    config: SeedConfig
    work: Path
    """States of the phases, drawn scenes and log."""
    seed: int

    def gather(self, folders: Sequence[Path]) -> Data:
        names = [folder.absolute().name for folder in folders]
        if len(set(names)) < len(names):
            raise SystemExit(f"--photographs: two folders have one name: {', '.join(names)}")
        scenes = self.work / "scenes"
        if process_rank() == 0:
            self._begin()
            if not (scenes / "instances.json").exists():
                write_scenes(scenes, self.seed, self.config.scenes, (360, 480))
        wait_for_all()
        return Data(
            [self._read(folder, held_out=False) for folder in folders],
            self._read(scenes, held_out=False),
            {
                name: self._read(folder, held_out=True)
                for name, folder in zip(names, folders, strict=True)
            },
        )

    def _begin(self) -> None:
        """Note what this is, or see that what was stopped here was the same."""
        self.work.mkdir(parents=True, exist_ok=True)
        begun = self.work / "begun.json"
        what = {"seed": self.seed, **self.config.model_dump(mode="json")}
        if not begun.exists():
            begun.write_text(json.dumps(what))
        elif json.loads(begun.read_text()) != what:
            raise SystemExit(f"{self.work} was begun with another config or seed")

    def _read(self, folder: Path, *, held_out: bool) -> list[LabelledImage]:
        return read_folder(
            folder,
            held_out=held_out,
            min_votes=self.config.min_votes,
            rule=self.config.held_out,
        )

    def run_phase(self, phase: Phase, data: Data) -> None:
        torch.manual_seed(self.seed)
        trainer, steps = self.new_trainer(phase), phase.training.steps
        state_file = self._state_file(phase)
        if state_file.exists():
            trainer.load_state_dict(torch.load(state_file, weights_only=True))
            log.info("%s: resumed at step %d", phase.name, trainer.step_count)
        if process_rank() == 0:
            self._forget_lines(phase, trainer.step_count)
        if trainer.step_count >= steps:
            return
        rank, batches = process_rank(), iter(self._batches(phase, data, trainer.step_count))
        sums: Counter[str] = Counter()  # since the last line of the log
        started = time.monotonic()
        while trainer.step_count < steps:
            step = trainer.step_count
            generator = torch.Generator().manual_seed((self.seed + 1000 * rank) * 1_000_003 + step)
            sums.update(trainer.step(next(batches), generator))
            step += 1
            if rank > 0:
                continue
            sums["steps"] += 1
            if step % LOG_EVERY_STEPS == 0 or step == steps:
                sums["seconds"] = time.monotonic() - started
                summed = sums.pop("steps")
                self._write_line(phase, step, {name: sums[name] / summed for name in sums})
                sums.clear()
                started = time.monotonic()
            if step % self.config.evaluate_every_steps == 0 or step == steps:
                if isinstance(trainer, JointTrainer) and trainer.config.prompts_per_image:
                    held_out = self.held_out_figures(trainer.averaged.sam, data)
                    self._write_line(phase, step, held_out)
                started = time.monotonic()
            if step % self.config.save_every_steps == 0 or step == steps:
                save_state(trainer.state_dict(), state_file)
        wait_for_all()

    def new_trainer(self, phase: Phase) -> Pretrainer | JointTrainer:
        """A phase begins with the averaged weights that the one before it ended with."""
        model = self._model(phase)
        if phase.joint is None:
            assert phase.encoder is not None
            return Pretrainer(model.embedder, phase.encoder)
        before = self._averaged(self.config.before(phase))
        if phase == self.config.phases[1]:
            model.start_from(before)
        else:
            model.load_state_dict(fit_attention_biases(before, model.state_dict()))
        return JointTrainer(model, phase.joint)

    def held_out_figures(
        self, sam: Sam, data: Data, max_images: int = 12, max_masks: int = 8
    ) -> dict[str, float]:
        """Click scores on a few held-out images of every folder."""
        figures: dict[str, float] = {}
        for name, images in data.held_out.items():
            scores = ClickScores()
            for image in images[:max_images]:
                with Image.open(image.path) as file:
                    pixels = np.asarray(file.convert("RGB"))
                predictor = Predictor(sam, image.size_hw, embed(sam, pixels))
                masks = map(decode_rle, image.rles)
                truths = [mask for mask in masks if mask.sum() >= self.config.min_area]
                scores += evaluate_image(predictor, truths[:: max(1, len(truths) // max_masks)])
            if scores.num_masks == 0:
                continue
            means = scores.means()
            figures |= {
                f"{name}_oracle": means.miou_1_click_oracle,
                f"{name}_1": means.miou_1_click,
                f"{name}_5": means.miou_5_clicks,
                f"{name}_head_error": means.iou_head_error,
            }
        return figures

    def export(self, last: Phase, directory: Path, data: Data) -> None:
        """Write the averaged weights that a phase ended with, with their figures."""
        if last.joint is None:
            raise SystemExit(f"{last.name} trains the encoder alone: there is no checkpoint yet")
        model = self._model(last)
        model.load_state_dict(self._averaged(self.config.ending_with(last)))
        sam = model.sam.eval()
        phases = self.config.phases[: self.config.phases.index(last) + 1]
        lineage = Lineage(
            parent="",
            round=0,
            stage="pretraining",
            steps=sum(phase.training.steps for phase in phases),
            metrics=self.held_out_figures(sam, data),
        )
        save_checkpoint(sam, directory, lineage, dtype=torch.float16)

    def _batches(self, phase: Phase, data: Data, first: int) -> Iterable[ClickBatch]:
        rank, share = process_rank(), images_of_each(phase)
        collections = [(1.0, images) for images in data.photographs]
        collections.append((phase.scenes * len(collections), data.scenes))
        batches = ClickBatches(
            SampleSource(collections, phase.image_size, phase.augmentation),
            seed=self.seed + 1000 * self.config.phases.index(phase),
            first=first,
            places=range(rank * share, (rank + 1) * share),
            clicks=phase.clicks_per_image,
        )
        return torch.utils.data.DataLoader(
            batches, batch_size=None, num_workers=1, prefetch_factor=4
        )

    def _model(self, phase: Phase) -> JointModel:
        first = self.config.phases[0].encoder
        assert first is not None
        return JointModel(Sam(self.config.sam(phase)), first)

    def _averaged(self, phases: Sequence[Phase]) -> dict[str, Tensor]:
        """What these phases ended with, averaged."""
        files = [self._state_file(phase) for phase in phases]
        return mean_weights([torch.load(file, weights_only=True)["averaged"] for file in files])

    @property
    def _log_file(self) -> Path:
        return self.work / "log.jsonl"

    def _state_file(self, phase: Phase) -> Path:
        return self.work / f"{phase.name}.pt"

    def _forget_lines(self, phase: Phase, after: int) -> None:
        """What steps wrote to the log that will be done again."""
        if not self._log_file.exists():
            return
        lines = [json.loads(line) for line in self._log_file.read_text().splitlines()]
        known = [line for line in lines if line["phase"] != phase.name or line["step"] <= after]
        staged = self._log_file.with_suffix(".staged")
        staged.write_text("".join(json.dumps(line) + "\n" for line in known))
        staged.replace(self._log_file)

    def _write_line(self, phase: Phase, step: int, figures: dict[str, float]) -> None:
        rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
        line = {"time": time.time(), "phase": phase.name, "step": step, **rounded}
        with self._log_file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s %d %s", phase.name, step, " ".join(f"{k}={v}" for k, v in rounded.items()))


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


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of states of the same keys; counters are those of the last."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if last.is_floating_point()
        else last
        for name, last in states[-1].items()
    }


def save_state(state: dict[str, object], path: Path) -> None:
    staged = path.with_suffix(".staged")
    torch.save(state, staged)
    staged.replace(path)


if __name__ == "__main__":
    main()
