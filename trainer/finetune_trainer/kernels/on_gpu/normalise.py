"""The RMS norm, with the addition before it and the residual stream around it; a program owns a token."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_and_normalise(
    residual: Tensor,
    addend: Tensor | None,
    weight: Tensor,
    epsilon: float,
    normalised: Tensor,
    summed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add two streams and write the RMS norm of their sum; see `plain.add_and_normalise`."""
    tokens, size = residual.shape
    if addend is None:
        summed = residual
    elif summed is None:
        summed = torch.empty_like(residual)
    inverse_rms = torch.empty(tokens, dtype=torch.float32, device=residual.device)
    _add_and_normalise[(tokens,)](
        residual,
        residual if addend is None else addend,
        weight,
        summed,
        normalised,
        inverse_rms,
        normalised.stride(0),
        size,
        epsilon,
        HAS_ADDEND=addend is not None,
        BLOCK=triton.next_power_of_2(size),
        num_warps=8,
    )
    return summed, inverse_rms


@triton.jit
def _add_and_normalise(
    residual,
    addend,
    weight,
    summed,
    normalised,
    inverse_rms,
    normalised_stride,
    size,
    epsilon,
    HAS_ADDEND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(residual + row * size + columns, mask=inside, other=0.0)
    if HAS_ADDEND:
        wide = x.to(tl.float32) + tl.load(addend + row * size + columns, mask=inside, other=0.0).to(tl.float32)
        # Rounded before it is normalised: the backward pass has only the rounded sum.
        x = wide.to(summed.dtype.element_ty)
        tl.store(summed + row * size + columns, x, mask=inside)
    x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x) / size + epsilon)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normalised + row * normalised_stride + columns, x * scale * w, mask=inside)
    tl.store(inverse_rms + row, scale)


def normalise_backward(
    gradient: Tensor, hidden: Tensor, inverse_rms: Tensor, weight: Tensor, residual_gradient: Tensor, out: Tensor
) -> None:
    """Write the gradient of a residual stream that also goes into a norm; see `plain.normalise_backward`."""
    tokens, size = hidden.shape
    _normalise_backward[(tokens,)](
        gradient,
        hidden,
        inverse_rms,
        weight,
        residual_gradient,
        out,
        gradient.stride(0),
        residual_gradient.stride(0),
        out.stride(0),
        size,
        BLOCK=triton.next_power_of_2(size),
        num_warps=8,
    )


@triton.jit
def _normalise_backward(
    gradient,
    hidden,
    inverse_rms,
    weight,
    residual_gradient,
    out,
    gradient_stride,
    residual_stride,
    out_stride,
    size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    scale = tl.load(inverse_rms + row)
    x = tl.load(hidden + row * size + columns, mask=inside, other=0.0).to(tl.float32) * scale
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    weighted = tl.load(gradient + row * gradient_stride + columns, mask=inside, other=0.0).to(tl.float32) * w
    residual = tl.load(residual_gradient + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(weighted * x) / size
    tl.store(out + row * out_stride + columns, residual + scale * (weighted - x * along), mask=inside)
    tl.store(gradient + row * gradient_stride + columns, x * w, mask=inside)
