"""How a phase of the shipped checkpoint's training begins."""

import torch

from benchmarks.seed_checkpoint import mean_weights


def test_weights_are_averaged_and_counters_are_the_last_ones() -> None:
    states = [
        {"weight": torch.tensor([1.0, 4.0]), "batches": torch.tensor(7)},
        {"weight": torch.tensor([3.0, 0.0]), "batches": torch.tensor(9)},
    ]
    mean = mean_weights(states)
    assert mean["weight"].tolist() == [2.0, 2.0]
    assert mean["batches"].item() == 9
