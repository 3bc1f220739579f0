"""Weights in NF4, brought back to the format of the products."""

import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.kernels.formats import NF4_BLOCK

MAX_BYTES_PER_PROGRAM = 2048


def expand_nf4(packed: Tensor, peaks: Tensor, values: Tensor, out: Tensor) -> None:
    """Write a weight in NF4 as numbers; see `plain.expand_nf4`. A program owns a stretch of a row."""
    rows, columns = out.shape
    row_bytes = columns // 2
    block = min(MAX_BYTES_PER_PROGRAM, triton.next_power_of_2(row_bytes))
    _expand_nf4[(rows, triton.cdiv(row_bytes, block))](
        packed,
        peaks,
        values,
        out,
        row_bytes,
        out.stride(0),
        BYTES_OF_A_BLOCK=NF4_BLOCK // 2,
        BLOCK=block,
        num_warps=max(1, min(8, block // 128)),
    )


@triton.jit
def _expand_nf4(packed, peaks, values, out, row_bytes, stride, BYTES_OF_A_BLOCK: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    columns = start + tl.arange(0, BLOCK)
    inside = columns < row_bytes
    places = row * row_bytes + columns
    codes = tl.load(packed + places, mask=inside, other=0).to(tl.int32)
    peak = tl.load(peaks + places // BYTES_OF_A_BLOCK, mask=inside, other=0.0).to(tl.float32)
    # The table is one line of the cache.
    first = tl.load(values + (codes >> 4)) * peak
    second = tl.load(values + (codes & 15)) * peak
    numbers = tl.interleave(first, second).to(out.dtype.element_ty)
    columns = 2 * start + tl.arange(0, 2 * BLOCK)
    tl.store(out + row * stride + columns, numbers, mask=columns < 2 * row_bytes)
