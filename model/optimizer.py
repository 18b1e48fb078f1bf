"""AdamW for a Sam: which parameter learns how fast, and how that changes over the steps."""

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from torch import nn

from model.layers import DropPath
from model.sam import Sam

# Norms, biases and everything that says where something is are not drawn towards zero.
NO_WEIGHT_DECAY = re.compile(
    r"pos_embed|rel_pos|attention_biases|iou_token|mask_tokens"
    r"|point_embeddings|not_a_point_embed|no_mask_embed"
)


def build_optimizer(
    sam: Sam, *, betas: tuple[float, float], weight_decay: float, layer_decay: float
) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient; `set_learning_rate` sets its rate.

    Args:
        layer_decay: the last layer of the image encoder learns at this fraction of the rate, the
            one below at its square, and so on down to the patch embedding.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter, scale in _scaled_parameters(sam, layer_decay):
        decays = parameter.ndim > 1 and not NO_WEIGHT_DECAY.search(name)
        decay = weight_decay if decays else 0.0
        empty = {"params": [], "lr_scale": scale, "weight_decay": decay}
        groups.setdefault((scale, decay), empty)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def scheduled_learning_rate(
    step: int, *, peak: float, warmup_steps: int, decay_steps: tuple[int, ...], decay_factor: float
) -> float:
    """Linear rise over the first steps, then `peak`, times the factor at each of `decay_steps`."""
    warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
    num_decays = sum(step >= decay_step for decay_step in decay_steps)
    return peak * warmup * decay_factor**num_decays


def process_rank() -> int:
    """Number of this process in the group that trains together; 0 where there is none."""
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


def average_gradients(parameters: list[nn.Parameter], *, weight: float = 1.0) -> None:
    """Mean over all processes of the group, where there is one. What has a gradient in none of them
    has none afterwards: the optimizer passes it by, and would let a zero decay its weights.

    Args:
        weight: of this process: with the number of masks it learnt from, the mean is that of all
            masks, however they lie. What a process without any has is not counted.
    """
    group = torch.distributed
    if not group.is_available() or not group.is_initialized() or group.get_world_size() == 1:
        return
    has_gradient = [parameter.grad is not None for parameter in parameters]
    sums = parameters[0].new_tensor([weight, *has_gradient], dtype=torch.float32)
    group.all_reduce(sums)
    total, *counts = sums.tolist()
    share = weight / max(total, 1e-9)  # no process may have any
    gradients = []
    for parameter, count in zip(parameters, counts, strict=True):
        if count > 0:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    # All at once: one after the other, hundreds of small messages take several times as long.
    messages = [group.all_reduce(gradient.mul_(share), async_op=True) for gradient in gradients]
    for message in messages:
        message.wait()


def set_drop_path(encoder: nn.Module, probability: float) -> None:
    """The last block is skipped with this probability, earlier ones less, the first never."""
    blocks = [module for module in encoder.modules() if isinstance(module, DropPath)]
    for index, block in enumerate(blocks):
        block.probability = probability * index / max(len(blocks) - 1, 1)


def _scaled_parameters(sam: Sam, layer_decay: float) -> Iterator[tuple[str, nn.Parameter, float]]:
    names = [name for name, _ in sam.named_parameters()]
    num_layers = 1 + max(_encoder_layer(name) or 0 for name in names)
    for name, parameter in sam.named_parameters():
        if parameter.requires_grad:
            layer = _encoder_layer(name)
            scale = 1.0 if layer is None else layer_decay ** (num_layers - layer)
            yield name, parameter, scale


def _encoder_layer(name: str) -> int | None:
    """0 for the image encoder's patch embedding, i + 1 for its block or stage i, None elsewhere."""
    if match := re.match(r"image_encoder\.(?:blocks|layers)\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if re.match(r"image_encoder\.(patch_embed|pos_embed)", name) else None
