"""The loss: cross-entropy over a large vocabulary without ever holding all of its logits."""

from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from finetune_trainer.planner import LOSS_CHUNK_TOKENS


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


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient of the hidden states is made in the forward pass, chunk by chunk, while the logits are there.

    The head is frozen, so this gradient is all that the backward pass needs: nothing is computed twice, and the
    memory is one chunk of logits whatever the length of the sequence.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), LOSS_CHUNK_TOKENS):
            chunk = slice(start, start + LOSS_CHUNK_TOKENS)
            logits = functional.linear(hidden[chunk], head).float()
            total += functional.cross_entropy(logits, targets[chunk], reduction="sum")
            # d(-log softmax(x)[t]) / dx = softmax(x) - onehot(t)
            logits = torch.softmax(logits, dim=-1)
            logits[torch.arange(len(logits), device=logits.device), targets[chunk]] -= 1
            gradient[chunk] = logits.to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_total: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradient_of_total.to(gradient.dtype), None, None
