"""The loss of a row of logits and its gradient; a program owns a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

VOCABULARY_STRETCH = 8192


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each row, and replace the logits by its gradient; see `plain.cross_entropy`."""
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        block = min(VOCABULARY_STRETCH, triton.next_power_of_2(vocabulary))
        _cross_entropy[(rows,)](
            logits, targets, losses, logits.stride(0), vocabulary, BLOCK=block, num_warps=max(1, min(16, block // 256))
        )
    return losses


@triton.jit
def _cross_entropy(logits, targets, losses, stride, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(targets + row)
    at_target = tl.load(start + target).to(tl.float32)
    # One pass for the largest logit and the sum of exponentials (Milakov and Gimelshein 2018,
    # https://arxiv.org/abs/1805.02867), one for the gradient.
    largest = float("-inf")
    total = 0.0
    for offset in range(0, vocabulary, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        x = tl.load(start + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger))
        largest = larger
    log_total = largest + tl.log(total)
    for offset in range(0, vocabulary, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x = tl.load(start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        share = tl.exp(x - log_total)
        tl.store(start + columns, tl.where(columns == target, share - 1.0, share), mask=inside)
    tl.store(losses + row, log_total - at_target)
