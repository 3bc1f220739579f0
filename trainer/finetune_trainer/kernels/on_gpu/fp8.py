"""Rows, adapters and products in fp8."""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.kernels.formats import (
    E4M3,
    LOW_FACTOR,
    NUM_PEAKS,
    ROW_PEAK,
    SMALLEST_SCALE,
    TAIL_PEAK,
    AdapterTail,
)
from finetune_trainer.kernels.on_gpu.copying import FORMS

MAX_COLUMNS_AT_ONCE = 8192
ADAPTER_ROWS_AT_ONCE = 16


def round_rows(values: Tensor, narrow: Tensor | None, peaks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Round rows to fp8, after three columns for each one of an adapter's; see `plain.round_rows`.

    A program owns a row. What it reads a second time, when the scale is known, it finds in the cache.
    """
    tokens, columns = values.shape
    rounded = torch.empty(tokens, width, dtype=E4M3, device=values.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=values.device)
    _round_rows[(tokens,)](
        values,
        values if narrow is None else narrow,
        peaks,
        rounded,
        scales,
        values.stride(0),
        0 if narrow is None else narrow.stride(0),
        width,
        columns,
        **settings_of(columns, 0 if narrow is None else narrow.shape[1], width),
    )
    return rounded, scales


def settings_of(columns: int, ranks: int, width: int) -> dict[str, int | float | bool]:
    """Return what `_round_rows` is compiled with for rows of some size."""
    block = min(MAX_COLUMNS_AT_ONCE, triton.next_power_of_2(columns))
    return {
        "RANKS": ranks,
        "RANKS_BLOCK": triton.next_power_of_2(max(ranks, 1)),
        "TAIL_BLOCK": triton.next_power_of_2(max(width - columns, 1)),
        "BLOCK": block,
        "IN_ONE": block >= columns,
        "NUM_PEAKS": NUM_PEAKS,
        "ROW_PEAK": ROW_PEAK,
        "TAIL_PEAK": TAIL_PEAK,
        "LOW_FACTOR": LOW_FACTOR,
        "SMALLEST_SCALE": SMALLEST_SCALE,
        "num_warps": max(1, min(16, block // 512)),
    }


@triton.jit
def _round_rows(
    values,
    narrow,
    peaks,
    rounded,
    scales,
    stride,
    narrow_stride,
    width,
    size,
    RANKS: tl.constexpr,
    RANKS_BLOCK: tl.constexpr,
    TAIL_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    IN_ONE: tl.constexpr,
    NUM_PEAKS: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    TAIL_PEAK: tl.constexpr,
    LOW_FACTOR: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source, tail = values + row * stride, rounded + row * width
    destination = tail + (width - size)
    columns = tl.arange(0, BLOCK)
    if IN_ONE:
        x = tl.load(source + columns, mask=columns < size, other=0.0).to(tl.float32)
        peak = tl.max(tl.abs(x))
    else:
        largest = tl.zeros((BLOCK,), dtype=tl.float32)
        for offset in range(0, size, BLOCK):
            inside = offset + columns < size
            part = tl.load(source + offset + columns, mask=inside, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(part))
        peak = tl.max(largest)
    scale = tl.maximum(peak / ROW_PEAK, SMALLEST_SCALE)
    if RANKS > 0:
        ranks = tl.arange(0, RANKS_BLOCK)
        factor = tl.maximum(tl.max(tl.load(peaks + tl.arange(0, NUM_PEAKS))) / TAIL_PEAK, 1.0)
        t = tl.load(narrow + row * narrow_stride + ranks, mask=ranks < RANKS, other=0.0).to(tl.float32) * factor
        scale = tl.maximum(scale, tl.max(tl.abs(t)) / TAIL_PEAK)
        t *= 1.0 / scale
        nearest = _nearest_in_e4m3(t)
        tl.store(tail + ranks, nearest.to(tl.float8e4nv), mask=ranks < RANKS)
        tl.store(tail + RANKS + ranks, (t - nearest).to(tl.float8e4nv), mask=ranks < RANKS)
        tl.store(tail + 2 * RANKS + ranks, (nearest * (1.0 / LOW_FACTOR)).to(tl.float8e4nv), mask=ranks < RANKS)
    tl.store(scales + row, scale)
    between = tl.arange(0, TAIL_BLOCK) + 3 * RANKS
    tl.store(tail + between, tl.zeros((TAIL_BLOCK,), dtype=tl.float32).to(tl.float8e4nv), mask=between < width - size)
    if IN_ONE:
        tl.store(destination + columns, (x * (1.0 / scale)).to(tl.float8e4nv), mask=columns < size)
    else:
        for offset in range(0, size, BLOCK):
            inside = offset + columns < size
            part = tl.load(source + offset + columns, mask=inside, other=0.0).to(tl.float32)
            tl.store(destination + offset + columns, (part * (1.0 / scale)).to(tl.float8e4nv), mask=inside)


@triton.jit
def _nearest_in_e4m3(numbers):
    """Return the nearest numbers that e4m3 holds, in fp32; of two that are as near, the even one.

    NB: not by turning fp8 back into fp32. Where a thread has just made four numbers of fp8, ptxas 12.8, which Triton
    3.6 and 3.7 bring along, reads two of them from the stack pointer's register (docs/LOG.md, 2026-11-28).
    """
    bits = numbers.to(tl.int32, bitcast=True)
    # Three bits of the mantissa are left: 20 go, half of the last one's worth is added before.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    # Below 2^-6 neighbours are 2^-9 apart, as fp32's are between 2^14 and 2^15.
    subnormal = (numbers + 24576.0) - 24576.0
    return tl.where(tl.abs(numbers) < 0.015625, subnormal, normal)


def multiply_rounded(
    rows: Tensor, row_scales: Tensor, columns: Tensor, column_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return a product of two matrices in fp8; see `plain.multiply_rounded`."""
    # Tensor cores keep sums at 14 bits or so: exact ones cost 8 % of a step, and gradients were no better.
    return torch._scaled_mm(
        rows, columns.T, row_scales[:, None], column_scales[None, :], out_dtype=dtype, use_fast_accum=True
    )


def make_tail_writer(tails: Sequence[AdapterTail]) -> Callable[[], None]:
    """Return what writes the columns of adapters in two launches; see `plain.make_tail_writer`."""
    if not tails:
        return lambda: None
    table = torch.tensor(
        [
            (
                tail.adapter.data_ptr(),
                *tail.adapter.stride(),
                *tail.adapter.shape,
                tail.numbers.data_ptr(),
                tail.numbers.stride(0),
                tail.scales.data_ptr(),
                tail.peaks.data_ptr(),
            )
            for tail in tails
        ],
        dtype=torch.int64,
        device=tails[0].adapter.device,
    )
    form = FORMS[tails[0].adapter.dtype]
    ranks = triton.next_power_of_2(max(tail.adapter.shape[1] for tail in tails))
    grid, kept = (len(tails), NUM_PEAKS), list(tails)  # the table has their addresses only

    def write() -> None:
        assert kept
        settings = {"FORM": form, "ROWS": ADAPTER_ROWS_AT_ONCE, "RANKS": ranks, "NUM_PEAKS": NUM_PEAKS}
        _find_peaks[grid](table, **settings, num_warps=4)
        _write_tails[grid](table, **settings, TAIL_PEAK=TAIL_PEAK, LOW_FACTOR=LOW_FACTOR, num_warps=4)

    return write


@triton.jit
def _scaled_adapter(entry, start, FORM: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr):
    """Return rows of an adapter divided by their scales, and which of them there are."""
    adapter = tl.load(entry).to(tl.pointer_type(FORM))
    row_stride, rank_stride = tl.load(entry + 1), tl.load(entry + 2)
    num_rows, num_ranks = tl.load(entry + 3), tl.load(entry + 4)
    scales = tl.load(entry + 7).to(tl.pointer_type(tl.float32))
    rows, ranks = start + tl.arange(0, ROWS), tl.arange(0, RANKS)
    inside = (rows < num_rows)[:, None] & (ranks < num_ranks)[None, :]
    place = adapter + rows[:, None] * row_stride + ranks[None, :] * rank_stride
    numbers = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scales + rows, mask=rows < num_rows, other=1.0)
    return numbers / scale[:, None], inside


@triton.jit
def _find_peaks(table, FORM: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, NUM_PEAKS: tl.constexpr):
    entry = table + tl.program_id(0) * 9
    num_rows = tl.load(entry + 3)
    largest = tl.zeros((ROWS, RANKS), dtype=tl.float32)
    for start in range(tl.program_id(1).to(tl.int64) * ROWS, num_rows, NUM_PEAKS * ROWS):
        scaled, _ = _scaled_adapter(entry, start, FORM, ROWS, RANKS)
        largest = tl.maximum(largest, tl.abs(scaled))
    peaks = tl.load(entry + 8).to(tl.pointer_type(tl.float32))
    tl.store(peaks + tl.program_id(1), tl.max(largest))


@triton.jit
def _write_tails(
    table,
    FORM: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    NUM_PEAKS: tl.constexpr,
    TAIL_PEAK: tl.constexpr,
    LOW_FACTOR: tl.constexpr,
):
    entry = table + tl.program_id(0) * 9
    num_rows, num_ranks = tl.load(entry + 3), tl.load(entry + 4)
    numbers, stride = tl.load(entry + 5).to(tl.pointer_type(tl.float8e4nv)), tl.load(entry + 6)
    peaks = tl.load(entry + 8).to(tl.pointer_type(tl.float32))
    factor = tl.maximum(tl.max(tl.load(peaks + tl.arange(0, NUM_PEAKS))) / TAIL_PEAK, 1.0)
    for start in range(tl.program_id(1).to(tl.int64) * ROWS, num_rows, NUM_PEAKS * ROWS):
        scaled, inside = _scaled_adapter(entry, start, FORM, ROWS, RANKS)
        scaled = scaled / factor
        nearest = _nearest_in_e4m3(scaled)
        high, low = nearest.to(tl.float8e4nv), ((scaled - nearest) * LOW_FACTOR).to(tl.float8e4nv)
        rows, ranks = start + tl.arange(0, ROWS), tl.arange(0, RANKS)
        place = numbers + rows[:, None] * stride + ranks[None, :]
        tl.store(place, high, mask=inside)
        tl.store(place + num_ranks, high, mask=inside)
        tl.store(place + 2 * num_ranks, low, mask=inside)
