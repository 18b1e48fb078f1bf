"""How a phase of the shipped checkpoint's training begins."""

from pathlib import Path

import torch

from benchmarks.seed_checkpoint import PHASES, averaged_weights, mean_weights


def test_weights_are_averaged_and_counters_are_the_last_ones() -> None:
    states = [
        {"weight": torch.tensor([1.0, 4.0]), "batches": torch.tensor(7)},
        {"weight": torch.tensor([3.0, 0.0]), "batches": torch.tensor(9)},
    ]
    mean = mean_weights(states)
    assert mean["weight"].tolist() == [2.0, 2.0]
    assert mean["batches"].item() == 9


def test_the_last_phase_is_averaged_with_the_one_before(tmp_path: Path) -> None:
    last_two = PHASES[-PHASES[-1].ends_with :]
    assert [phase.name for phase in last_two] == ["steady-512", "near-512"]
    for value, phase in enumerate(last_two):
        state = {"averaged": {"weight": torch.full((2,), float(value))}}
        torch.save(state, tmp_path / f"{phase.name}.pt")
    assert averaged_weights(last_two, tmp_path)["weight"].tolist() == [0.5, 0.5]
