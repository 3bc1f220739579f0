"""Attention inside packed documents, against PyTorch's of each document by itself and autograd.

Where there is a GPU the kernels run on it; elsewhere Triton's interpreter runs them (`tests/conftest.py`).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetune_trainer.kernels.on_gpu import attention

HAS_GPU = Path("/dev/nvidiactl").exists()
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 16
# One token, one block, more than a block, parts of blocks on both sides; 57 tokens are no multiple of a block.
LENGTHS = (1, 16, 21, 3, 16)
SMALL = attention.Blocks(queries=16, keys=16, num_warps=4, num_stages=1)
# NB: the interpreter multiplies matrices of bf16 as if they were integers.
FORMATS = {"fp32": (torch.float32, 1e-5), "16 bits": (torch.bfloat16, 1e-2) if HAS_GPU else (torch.float16, 2e-3)}


@pytest.fixture(autouse=True)
def _small_blocks_on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FORWARD", "OF_QUERIES", "OF_KEYS"):
        monkeypatch.setattr(attention, name, SMALL)
    with torch.device("cuda" if HAS_GPU else "cpu"):
        yield


def heads_of_one_buffer(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    buffer = torch.randn(tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM).to(dtype)
    queries, keys, values = buffer.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
    return queries, keys, values


def extents(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where the document of each token begins and ends."""
    ends = [sum(lengths[: number + 1]) for number, length in enumerate(lengths) for _ in range(length)]
    starts = [sum(lengths[:number]) for number, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor(starts, dtype=torch.int32), torch.tensor(ends, dtype=torch.int32)


def one_by_one(queries: Tensor, keys: Tensor, values: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Attention of each document by itself."""
    outputs = []
    for own in zip(*(heads.split(lengths) for heads in (queries, keys, values)), strict=True):
        own_queries, own_keys, own_values = (heads.transpose(0, 1)[None] for heads in own)
        output = scaled_dot_product_attention(own_queries, own_keys, own_values, is_causal=True, enable_gqa=True)
        outputs.append(output[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape
    assert (ours.float() - expected).norm() <= tolerance * max(expected.norm(), 1.0)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize("lengths", [LENGTHS, (57,), (1,)], ids=["documents", "one document", "one token"])
def test_each_document_is_attended_to_by_itself(dtype: torch.dtype, tolerance: float, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    queries, keys, values = heads_of_one_buffer(tokens, dtype)
    starts, ends = extents(lengths)
    gradient = torch.randn(tokens, NUM_HEADS * HEAD_DIM).to(dtype)
    leaves = [heads.float().requires_grad_() for heads in (queries, keys, values)]
    expected = one_by_one(*leaves, lengths)
    expected.backward(gradient.float())

    output, log_sums = attention.attend_in_documents(queries, keys, values, starts)
    assert_close(output, expected.detach(), tolerance)
    found = attention.attend_in_documents_backward(queries, keys, values, starts, ends, output, log_sums, gradient)
    for ours, leaf in zip(found, leaves, strict=True):
        assert leaf.grad is not None
        assert_close(ours, leaf.grad, tolerance)
