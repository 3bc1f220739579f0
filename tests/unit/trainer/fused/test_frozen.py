"""Frozen weights with their adapters, whatever they are kept as."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from finetune_trainer.fused.frozen.nf4 import Nf4
from finetune_trainer.fused.frozen.weight import FrozenFormat, FrozenWeight, GroupSize, Operand
from finetune_trainer.fused.frozen.whole import Whole

CPU = torch.device("cpu")
INPUTS, OUTPUTS, RANK, TOKENS = 576, 576, 64, 512


def _beside(weight: FrozenWeight, x: Tensor, t: Tensor) -> Tensor:
    return weight.forward(Operand(torch.cat([x, t], dim=1)), bias=None)


def _apart(weight: FrozenWeight, x: Tensor, t: Tensor) -> Tensor:
    return weight.forward_apart(x, t)


@pytest.mark.parametrize("forward", [_beside, _apart])
@pytest.mark.parametrize("size_of_b", [1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("kept_as", [Whole, Nf4])
def test_what_an_adapter_has_learnt_in_its_first_steps_reaches_the_output(
    kept_as: type[FrozenFormat], size_of_b: float, forward: Callable[[FrozenWeight, Tensor, Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, generator=generator)
    frozen = kept_as(torch.bfloat16, CPU)
    weight = frozen.make_weight(GroupSize(INPUTS, OUTPUTS, ranks=RANK, columns=RANK))
    weight.load(weight.staging().copy_(random(OUTPUTS, INPUTS) * 0.05))
    lora_b = (random(OUTPUTS, RANK) * size_of_b).bfloat16()
    x, t = random(TOKENS, INPUTS).bfloat16(), random(TOKENS, RANK).bfloat16()
    refresh = frozen.make_refresh([weight], lambda weight: [(weight.matrix_b, lora_b.float())])
    without = x.double() @ weight.backward_frozen(Operand(torch.eye(OUTPUTS, dtype=torch.bfloat16))).double().T
    refresh()
    learnt = t.double() @ lora_b.double().T
    change = forward(weight, x, t).double() - without
    # Most of a change is less than a step of bf16; over so many numbers it is there.
    assert (change * learnt).sum() / learnt.square().sum() == pytest.approx(1, abs=0.1)
