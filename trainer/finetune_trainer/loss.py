"""The loss: cross-entropy over a large vocabulary without ever holding all of its logits."""

from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from finetune_trainer.kernels import kernels_for
from finetune_trainer.planner.memory import LOSS_CHUNK_TOKENS


def summed_cross_entropy(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log p(target) over tokens.

    Args:
        hidden: last hidden states, [num_targets, hidden_size].
        head: the frozen output projection, [vocab_size, hidden_size]; it gets no gradient.
        targets: int64 [num_targets]; there may be none, then the sum is 0 and the gradient empty.

    Returns:
        fp32 scalar.
    """
    total: torch.Tensor = _SummedCrossEntropy.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
    return total


def loss_and_gradient(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss, fp32 scalar, and its gradient with respect to the hidden states, of their shape.

    The gradient is made chunk by chunk, while the logits are there. The head is frozen, so it is all that a backward
    pass needs: nothing is computed twice, and the memory is one chunk of logits whatever the length of the sequence.
    """
    kernels = kernels_for(hidden.device)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    gradient = torch.empty_like(hidden)
    for start in range(0, len(hidden), LOSS_CHUNK_TOKENS):
        chunk = slice(start, start + LOSS_CHUNK_TOKENS)
        logits = hidden[chunk] @ head.T
        total += kernels.cross_entropy(logits, targets[chunk]).sum()
        torch.mm(logits, head, out=gradient[chunk])
    return total, gradient


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient of the hidden states is made in the forward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total, gradient = loss_and_gradient(hidden, head, targets)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_total: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradient_of_total.to(gradient.dtype), None, None
