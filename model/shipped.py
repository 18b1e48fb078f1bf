"""Small networks whose weights come with the package."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from model.checkpoint import load_weights, read_safetensors

Network = TypeVar("Network", bound=nn.Module)


def shipped(make: Callable[[], Network], weights: Path) -> Network:
    """In eval mode, fp32, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # begins with weights that are drawn, and not kept
        network = make()
    stored = read_safetensors(weights).items()
    numbers = {name: t.float() if t.is_floating_point() else t for name, t in stored}
    load_weights(network, numbers, weights)
    return network.eval()


def sha256(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()
