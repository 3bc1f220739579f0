"""SwiGLU and its backward pass."""

import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.kernels.formats import RoundedRows
from finetune_trainer.kernels.on_gpu.fp8 import places_of, round_row, rounding_of

COLUMNS_PER_PROGRAM = 2048


def gate(gate_and_up: Tensor, out: Tensor, rounded: RoundedRows | None = None) -> None:
    """Write silu(gate) * up; see `plain.gate`. A program owns a part of a row, or the whole of one that is rounded."""
    tokens, size = out.shape
    block = COLUMNS_PER_PROGRAM if rounded is None else triton.next_power_of_2(size)
    _gate[(tokens, triton.cdiv(size, block))](
        gate_and_up,
        out,
        *places_of(rounded, out),
        gate_and_up.stride(0),
        out.stride(0),
        size,
        **rounding_of(rounded),
        BLOCK=block,
        num_warps=max(8, min(32, block // 1024)),
    )


@triton.jit
def _gate(
    gate_and_up,
    out,
    rounded,
    rounded_scales,
    rounded_stride,
    stride,
    out_stride,
    size,
    IS_ROUNDED: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    source = gate_and_up + row * stride + columns
    gated = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    product = (gated * tl.sigmoid(gated) * up).to(out.dtype.element_ty)
    tl.store(out + row * out_stride + columns, product, mask=inside)
    if IS_ROUNDED:
        place = rounded + row * rounded_stride
        round_row(product.to(tl.float32), place, columns, inside, rounded_scales + row, ROW_PEAK, SMALLEST_SCALE)


def gate_backward(
    gate_and_up: Tensor, gradient: Tensor, out: Tensor, wants_product: bool, rounded: RoundedRows | None = None
) -> None:
    """Write the gradients of gate and up, and their product where it is wanted; see `plain.gate_backward`.

    A program owns a part of a row, or the whole of one that is rounded: it then reads again what it has just written,
    from the cache.
    """
    tokens, size = gradient.shape
    columns_per_program = COLUMNS_PER_PROGRAM if rounded is None else size
    block = COLUMNS_PER_PROGRAM if rounded is None else 2 * COLUMNS_PER_PROGRAM
    _gate_backward[(tokens, triton.cdiv(size, columns_per_program))](
        gate_and_up,
        gradient,
        out,
        *places_of(rounded, out),
        gate_and_up.stride(0),
        gradient.stride(0),
        out.stride(0),
        size,
        columns_per_program,
        WANTS_PRODUCT=wants_product,
        **rounding_of(rounded),
        BLOCK=block,
        num_warps=8 if rounded is None else 16,
    )


@triton.jit
def _gate_backward(
    gate_and_up,
    gradient,
    out,
    rounded,
    rounded_scales,
    rounded_stride,
    stride,
    gradient_stride,
    out_stride,
    size,
    columns_per_program,
    WANTS_PRODUCT: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    form: tl.constexpr = out.dtype.element_ty
    first = tl.program_id(1) * columns_per_program
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    for offset in range(first, first + columns_per_program, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        inside = columns < size
        source = gate_and_up + row * stride + columns
        gated = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
        incoming = tl.load(gradient + row * gradient_stride + columns, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gated)
        silu = gated * sigmoid
        by_gate = (incoming * up * sigmoid * (1.0 + gated - silu)).to(form)
        by_up = (incoming * silu).to(form)
        destination = out + row * out_stride + columns
        tl.store(destination, by_gate, mask=inside)
        tl.store(destination + size, by_up, mask=inside)
        if WANTS_PRODUCT:
            tl.store(gradient + row * gradient_stride + columns, silu * up, mask=inside)
        if IS_ROUNDED:
            largest = tl.maximum(largest, tl.maximum(tl.abs(by_gate.to(tl.float32)), tl.abs(by_up.to(tl.float32))))
    if IS_ROUNDED:
        tl.debug_barrier()  # another thread may read what one has written
        scale = tl.maximum(tl.max(largest) / ROW_PEAK, SMALLEST_SCALE)
        tl.store(rounded_scales + row, scale)
        for offset in range(0, 2 * size, BLOCK):
            columns = offset + tl.arange(0, BLOCK)
            inside = columns < 2 * size
            x = tl.load(out + row * out_stride + columns, mask=inside, other=0.0).to(tl.float32)
            tl.store(rounded + row * rounded_stride + columns, (x * (1.0 / scale)).to(tl.float8e4nv), mask=inside)


def gate_backward_with_adapters(
    gate_and_up: Tensor,
    gradient: Tensor,
    out: Tensor,
    narrow_gradient: Tensor,
    narrow: Tensor,
    gradient_a: Tensor,
    gradient_b_gate: Tensor,
    gradient_b_up: Tensor,
) -> None:
    """Do `gate_backward` and add to the adapters' gradients; see `plain.gate_backward_with_adapters`.

    A program owns a stretch of columns and walks through all tokens, so that sums over tokens stay in its registers.
    """
    rank, size = gradient_a.shape
    _gate_backward_with_adapters[(triton.cdiv(size, 64),)](
        gate_and_up,
        gradient,
        out,
        narrow_gradient,
        narrow,
        gradient_a,
        gradient_b_gate,
        gradient_b_up,
        gate_and_up.stride(0),
        gradient.stride(0),
        out.stride(0),
        narrow_gradient.stride(0),
        narrow.stride(0),
        len(gradient),
        size,
        RANK=rank,
        RANKS=max(16, triton.next_power_of_2(rank)),
        TOKENS=32,
        COLUMNS=64,
        num_warps=4,
        num_stages=3,
    )


@triton.jit
def _gate_backward_with_adapters(
    gate_and_up,
    gradient,
    out,
    narrow_gradient,
    narrow,
    gradient_a,
    gradient_b_gate,
    gradient_b_up,
    stride,
    gradient_stride,
    out_stride,
    narrow_gradient_stride,
    narrow_stride,
    num_tokens,
    size,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, RANKS)
    in_columns, in_ranks = columns < size, ranks < RANK
    sum_a = tl.zeros((RANKS, COLUMNS), dtype=tl.float32)
    # B's gradients are summed transposed: as the right factor of a product, what was just computed goes to the tensor
    # cores as it is; as a transposed left factor it cost three times the kernel.
    sum_gate = tl.zeros((RANKS, COLUMNS), dtype=tl.float32)
    sum_up = tl.zeros((RANKS, COLUMNS), dtype=tl.float32)
    for start in range(0, num_tokens, TOKENS):
        tokens = (start + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
        in_tokens = tokens < num_tokens
        inside = in_tokens & in_columns[None, :]
        source = gate_and_up + tokens * stride + columns[None, :]
        gated = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
        incoming = tl.load(gradient + tokens * gradient_stride + columns[None, :], mask=inside, other=0.0)
        incoming = incoming.to(tl.float32)
        sigmoid = tl.sigmoid(gated)
        silu = gated * sigmoid
        by_gate = (incoming * up * sigmoid * (1.0 + gated - silu)).to(out.dtype.element_ty)
        by_up = (incoming * silu).to(out.dtype.element_ty)
        destination = out + tokens * out_stride + columns[None, :]
        tl.store(destination, by_gate, mask=inside)
        tl.store(destination + size, by_up, mask=inside)
        in_narrow = in_tokens & in_ranks[None, :]
        u = tl.load(narrow_gradient + tokens * narrow_gradient_stride + ranks[None, :], mask=in_narrow, other=0.0)
        t = narrow + tokens * narrow_stride + ranks[None, :]
        product = (silu * up).to(out.dtype.element_ty)
        sum_a += tl.dot(tl.trans(u), product, input_precision="ieee")
        t_gate = tl.load(t, mask=in_narrow, other=0.0)
        t_up = tl.load(t + RANK, mask=in_narrow, other=0.0)
        sum_gate += tl.dot(tl.trans(t_gate), by_gate, input_precision="ieee")
        sum_up += tl.dot(tl.trans(t_up), by_up, input_precision="ieee")
    place = gradient_a + ranks[:, None] * size + columns[None, :]
    inside = in_ranks[:, None] & in_columns[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + sum_a, mask=inside)
    place = columns[None, :] * RANK + ranks[:, None]
    gate_place, up_place = gradient_b_gate + place, gradient_b_up + place
    tl.store(gate_place, tl.load(gate_place, mask=inside, other=0.0) + sum_gate, mask=inside)
    tl.store(up_place, tl.load(up_place, mask=inside, other=0.0) + sum_up, mask=inside)
