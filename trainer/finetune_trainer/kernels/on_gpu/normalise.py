"""The RMS norm, with the addition before it and the residual stream around it; a program owns a token."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.kernels.formats import RoundedRows
from finetune_trainer.kernels.on_gpu.fp8 import places_of, round_row, rounding_of


def add_and_normalise(
    residual: Tensor,
    addend: Tensor | None,
    weight: Tensor,
    epsilon: float,
    normalised: Tensor,
    summed: Tensor | None = None,
    rounded: RoundedRows | None = None,
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
        *places_of(rounded, normalised),
        normalised.stride(0),
        size,
        epsilon,
        HAS_ADDEND=addend is not None,
        **rounding_of(rounded),
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
    rounded,
    rounded_scales,
    rounded_stride,
    normalised_stride,
    size,
    epsilon,
    HAS_ADDEND: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
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
    y = (x * scale * w).to(normalised.dtype.element_ty)
    tl.store(normalised + row * normalised_stride + columns, y, mask=inside)
    tl.store(inverse_rms + row, scale)
    if IS_ROUNDED:
        place = rounded + row * rounded_stride
        round_row(y.to(tl.float32), place, columns, inside, rounded_scales + row, ROW_PEAK, SMALLEST_SCALE)


def normalise_backward(
    gradient: Tensor,
    hidden: Tensor,
    inverse_rms: Tensor,
    weight: Tensor,
    residual_gradient: Tensor,
    out: Tensor,
    rounded: RoundedRows | None = None,
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
        *places_of(rounded, out),
        gradient.stride(0),
        residual_gradient.stride(0),
        out.stride(0),
        size,
        **rounding_of(rounded),
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
    rounded,
    rounded_scales,
    rounded_stride,
    gradient_stride,
    residual_stride,
    out_stride,
    size,
    IS_ROUNDED: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
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
    y = (residual + scale * (weighted - x * along)).to(out.dtype.element_ty)
    tl.store(out + row * out_stride + columns, y, mask=inside)
    tl.store(gradient + row * gradient_stride + columns, x * w, mask=inside)
    if IS_ROUNDED:
        place = rounded + row * rounded_stride
        round_row(y.to(tl.float32), place, columns, inside, rounded_scales + row, ROW_PEAK, SMALLEST_SCALE)
