"""Causal attention with as many heads of keys and values as the model has, and documents kept apart.

On a GPU whole rows take cuDNN's kernel, 1.7 times as fast as FlashAttention 2 on an H100 at 4,096 tokens. Packed
documents take a kernel of our own, `kernels.on_gpu.attention`: 1.6 times as fast as FlashAttention 2 where they have
some 250 tokens, which is 2.5 % of a step. FlashAttention 2 with the lengths of the documents has the long ones, and
what our kernel does not know; neither computes a score between documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from finetune_trainer.data.batch import Batch
from finetune_trainer.kernels.fallback import with_fallback

# NB: cuDNN makes a plan for each length that it meets, which takes longer than a step.
CUDNN_LENGTH_MULTIPLE = 512
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# The longest mean of packed documents that our kernel was measured with; it gains less the longer they are.
SHORT_DOCUMENT_TOKENS = 2048
HEAD_DIMS = (64, 128)  # of that kernel


@dataclass(frozen=True)
class Documents:
    """Which tokens of a batch see each other.

    Attributes:
        rows: sequences of the batch.
        boundaries: int32 [num_documents + 1], where documents start in the flattened batch; None where rows are whole.
        longest: tokens of the longest document.
        mask: bool [rows, 1, s, s], for devices without a kernel that takes boundaries.
        extents: int32 [2, tokens], where the document of each token starts and ends; None where they are not short.
    """

    rows: int
    boundaries: Tensor | None = None
    longest: int = 0
    mask: Tensor | None = None
    extents: Tensor | None = None


def are_short(tokens: int, num_documents: int) -> bool:
    """Say whether documents are so short, in the mean, that our own kernel has them."""
    return tokens <= num_documents * SHORT_DOCUMENT_TOKENS


def extents_of(document_lengths: Sequence[Tensor]) -> Tensor:
    """Return where the document of each token starts and ends, int32 [2, tokens] on the CPU."""
    lengths = torch.cat(list(document_lengths))
    ends = lengths.cumsum(0)
    return torch.stack([ends - lengths, ends]).repeat_interleave(lengths, dim=1).to(torch.int32)


def documents_of(batch: Batch, device: torch.device) -> Documents:
    """Return the documents of a batch as the kernel of a device wants them."""
    rows, length = batch.tokens.shape
    if batch.document_lengths is None:
        return Documents(rows)
    if device.type == "cuda":
        lengths = torch.cat(batch.document_lengths)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
        extents = extents_of(batch.document_lengths) if are_short(rows * length, len(lengths)) else None
        return Documents(
            rows,
            sent(ends, device),
            int(lengths.max()),
            extents=None if extents is None else sent(extents, device),
        )
    places = torch.arange(length)
    owner = torch.stack([torch.repeat_interleave(torch.arange(len(row)), row) for row in batch.document_lengths])
    mask = (owner[:, :, None] == owner[:, None, :]) & (places[:, None] >= places[None, :])
    return Documents(rows, mask=mask[:, None].to(device))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, which nobody waits for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass(frozen=True)
class Attended:
    """A forward pass of attention, kept for its backward pass."""

    queries: Tensor  # [tokens, num_heads, head_dim]; a leaf of autograd where there are no `log_sums`
    keys: Tensor
    values: Tensor
    documents: Documents
    output: Tensor  # [tokens, num_heads * head_dim]
    log_sums: Tensor | None = None  # of our own kernel


def attend(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Attended:
    """Compute attention.

    Args:
        queries: [tokens, num_heads, head_dim], any distance between tokens.
        keys: [tokens, num_kv_heads, head_dim].
        values: likewise.
        documents: of the batch.
    """
    is_own = documents.extents is not None and queries.dtype is torch.bfloat16 and queries.shape[2] in HEAD_DIMS
    compute = _attend_by_own_kernel if is_own else _attend_by_autograd
    return cast(Attended, compute(queries, keys, values, documents))


def attend_backward(attended: Attended, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, each of its shape."""
    compute = _backward_by_autograd if attended.log_sums is None else _backward_by_own_kernel
    return cast(tuple[Tensor, Tensor, Tensor], compute(attended, gradient))


def _attend_by_autograd(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Attended:
    queries, keys, values = (heads.detach().requires_grad_() for heads in (queries, keys, values))
    compute = _attend_in_rows if documents.boundaries is None else _attend_in_documents
    with torch.enable_grad():
        output = compute(queries, keys, values, documents)
        return Attended(queries, keys, values, documents, output.flatten(1))


def _backward_by_autograd(attended: Attended, gradient: Tensor) -> tuple[Tensor, ...]:
    leaves = (attended.queries, attended.keys, attended.values)
    return torch.autograd.grad(attended.output, leaves, gradient)


def _attend_by_triton(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Attended:
    from finetune_trainer.kernels.on_gpu import attention  # there is no Triton where there is no Linux

    assert documents.extents is not None
    output, log_sums = attention.attend_in_documents(queries, keys, values, documents.extents[0])
    return Attended(queries, keys, values, documents, output, log_sums)


def _backward_by_triton(attended: Attended, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from finetune_trainer.kernels.on_gpu import attention

    documents, log_sums = attended.documents, attended.log_sums
    assert documents.extents is not None
    assert log_sums is not None
    starts, ends = documents.extents
    return attention.attend_in_documents_backward(
        attended.queries, attended.keys, attended.values, starts, ends, attended.output, log_sums, gradient
    )


def _forward_and_backward_by_autograd(attended: Attended, gradient: Tensor) -> tuple[Tensor, ...]:
    again = _attend_by_autograd(attended.queries, attended.keys, attended.values, attended.documents)
    return _backward_by_autograd(again, gradient)


_attend_by_own_kernel = with_fallback("attend_in_documents", _attend_by_triton, _attend_by_autograd)
_backward_by_own_kernel = with_fallback(
    "attend_in_documents_backward", _backward_by_triton, _forward_and_backward_by_autograd
)


def _attend_in_rows(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Tensor:
    queries, keys, values = (_in_rows(heads, documents.rows) for heads in (queries, keys, values))
    backends = BACKENDS
    if queries.is_cuda and queries.shape[2] % CUDNN_LENGTH_MULTIPLE == 0:
        backends = [SDPBackend.CUDNN_ATTENTION, *BACKENDS]
    mask = documents.mask
    with sdpa_kernel(backends, set_priority=True):
        output = scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None, enable_gqa=True)
    return output.transpose(1, 2).flatten(0, 1)


def _in_rows(heads: Tensor, rows: int) -> Tensor:
    """Take tokens apart into rows, and put heads before them: [rows, heads, length, head_dim]; nothing is copied."""
    tokens, num_heads, head_dim = heads.shape
    return heads.view(rows, tokens // rows, num_heads, head_dim).transpose(1, 2)


def _attend_in_documents(queries: Tensor, keys: Tensor, values: Tensor, documents: Documents) -> Tensor:
    # NB: torch.nn.attention.varlen_attn, the public name, takes fewer heads of keys than of queries only in newer
    # versions than the oldest that this runs with.
    output: Tensor = torch.ops.aten._flash_attention_forward(
        queries,
        keys,
        values,
        documents.boundaries,
        documents.boundaries,
        documents.longest,
        documents.longest,
        0.0,
        True,
        False,
    )[0]
    return output
