"""A checkpoint in memory: how far the run has come, its adapter, its optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP_COUNT = "step"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a run has come; what its report is made of."""

    step: int = 0  # steps done; the place in the data and every random stream follow from it and the seed
    tokens: int = 0
    seconds: float = 0.0  # spent in steps, over all attempts
    first_loss: float = float("nan")
    recent_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A step checkpoint in memory."""

    progress: Progress
    settings: Mapping[str, Any]  # what must be equal for a run to go on from here
    adapter: Tensors  # under PEFT's names
    adapter_config: Mapping[str, Any]
    optimizer: Tensors  # under the names of `optimizer_tensors`
    time: str  # when it was taken, RFC 3339


def create_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the state that its first step would give it.

    So a snapshot knows from the start which tensors there are, and a resumed run copies into them.
    """
    for group in optimizer.param_groups:
        # NB: AdamW counts its steps in a tensor that stays on the CPU unless it is capturable or fused
        # (https://github.com/pytorch/pytorch/blob/main/torch/optim/adam.py, `_init_group`).
        counts_on_device = group["fused"] or group["capturable"]
        for parameter in group["params"]:
            count = torch.zeros((), dtype=torch.float32, device=parameter.device if counts_on_device else "cpu")
            optimizer.state[parameter] = {STEP_COUNT: count} | {
                moment: torch.zeros_like(parameter, memory_format=torch.preserve_format) for moment in MOMENTS
            }


def optimizer_tensors(optimizer: torch.optim.Optimizer, adapter: Mapping[str, nn.Parameter]) -> Tensors:
    """Return the optimizer's own tensors, not copies, as `<parameter>.<moment>`; `create_moments` has made them."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment].detach()
        for name, parameter in adapter.items()
        for moment in (*MOMENTS, STEP_COUNT)
    }


@torch.no_grad()
def restore(tensors: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    """Copy what was saved into the tensors of the same names.

    Raises:
        KeyError: one is missing.
    """
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
