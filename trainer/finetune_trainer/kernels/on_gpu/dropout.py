"""Dropout whose choice is computed from a seed wherever it is needed, and stored nowhere.

The seed is read from the GPU's memory, so that a step that the GPU repeats by itself drops other values each time.
"""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS_PER_PROGRAM = 2048


def drop(values: Tensor, probability: float, seed: Tensor, first_row: int, out: Tensor) -> None:
    """Set each value to zero with a probability, and divide the others by what is left of one; see `plain.drop`."""
    rows, columns = values.shape
    _drop[(rows, triton.cdiv(columns, COLUMNS_PER_PROGRAM))](
        values,
        values,
        out,
        values.stride(0),
        out.stride(0),
        columns,
        seed,
        _as_word(first_row * columns),
        int(probability * 2**32),
        1 / (1 - probability),
        ADDS=False,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=8,
    )


def add_dropped(total: Tensor, values: Tensor, probability: float, seed: Tensor, first_row: int) -> None:
    """Add values to a total as `drop` would leave them; see `plain.add_dropped`."""
    rows, columns = values.shape
    _drop[(rows, triton.cdiv(columns, COLUMNS_PER_PROGRAM))](
        values,
        total,
        total,
        values.stride(0),
        total.stride(0),
        columns,
        seed,
        _as_word(first_row * columns),
        int(probability * 2**32),
        1 / (1 - probability),
        ADDS=True,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=8,
    )


def _as_word(place: int) -> int:
    """Return the low 32 bits as a signed number, so that Triton takes every place for the same type."""
    word = place & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


@triton.jit(do_not_specialize=["seed", "first_place", "threshold"])
def _drop(
    values,
    total,
    out,
    stride,
    out_stride,
    size,
    seed,
    first_place,
    threshold,
    scale,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    word = (row * size + columns + first_place + tl.load(seed) * 0x9E3779B1).to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    word = word ^ (word >> 16)
    x = tl.load(values + row * stride + columns, mask=inside, other=0.0).to(tl.float32) * scale
    kept = tl.where(word.to(tl.int64) >= threshold, x, 0.0)
    if ADDS:
        kept += tl.load(total + row * out_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + columns, kept, mask=inside)
