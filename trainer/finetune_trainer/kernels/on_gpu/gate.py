"""SwiGLU and its backward pass."""

import triton
import triton.language as tl
from torch import Tensor

COLUMNS_PER_PROGRAM = 2048


def gate(gate_and_up: Tensor, out: Tensor) -> None:
    """Write silu(gate) * up; see `plain.gate`."""
    tokens, size = out.shape
    _gate[(tokens, triton.cdiv(size, COLUMNS_PER_PROGRAM))](
        gate_and_up, out, gate_and_up.stride(0), out.stride(0), size, BLOCK=COLUMNS_PER_PROGRAM, num_warps=8
    )


@triton.jit
def _gate(gate_and_up, out, stride, out_stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    source = gate_and_up + row * stride + columns
    gated = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + columns, gated * tl.sigmoid(gated) * up, mask=inside)


def gate_backward(gate_and_up: Tensor, gradient: Tensor, out: Tensor, wants_product: bool) -> None:
    """Write the gradients of gate and up, and their product where it is wanted; see `plain.gate_backward`."""
    tokens, size = gradient.shape
    _gate_backward[(tokens, triton.cdiv(size, COLUMNS_PER_PROGRAM))](
        gate_and_up,
        gradient,
        out,
        gate_and_up.stride(0),
        gradient.stride(0),
        out.stride(0),
        size,
        WANTS_PRODUCT=wants_product,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=8,
    )


@triton.jit
def _gate_backward(
    gate_and_up,
    gradient,
    out,
    stride,
    gradient_stride,
    out_stride,
    size,
    WANTS_PRODUCT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    source = gate_and_up + row * stride + columns
    gated = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + size, mask=inside, other=0.0).to(tl.float32)
    incoming = tl.load(gradient + row * gradient_stride + columns, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gated)
    silu = gated * sigmoid
    destination = out + row * out_stride + columns
    tl.store(destination, incoming * up * sigmoid * (1.0 + gated - silu), mask=inside)
    tl.store(destination + size, incoming * silu, mask=inside)
    if WANTS_PRODUCT:
        tl.store(gradient + row * gradient_stride + columns, silu * up, mask=inside)


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
        num_warps=8,
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
