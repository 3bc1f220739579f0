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
    RoundedRows,
)
from finetune_trainer.kernels.on_gpu.copying import FORMS

MAX_COLUMNS_AT_ONCE = 8192
ROWS_AT_ONCE, COLUMNS_ROUNDED_AGAIN = 8, 512
ADAPTER_ROWS_AT_ONCE, RANKS_AT_ONCE = 32, 64


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
    return _settings_of_adapter(ranks, width - columns) | {
        "BLOCK": block,
        "IN_ONE": block >= columns,
        "ROW_PEAK": ROW_PEAK,
        "SMALLEST_SCALE": SMALLEST_SCALE,
        "num_warps": max(1, min(16, block // 512)),
    }


def _settings_of_adapter(ranks: int, start: int) -> dict[str, int | float | bool]:
    return {
        "RANKS": ranks,
        "RANKS_BLOCK": triton.next_power_of_2(max(ranks, 1)),
        "START_BLOCK": triton.next_power_of_2(max(start, 1)),
        "NUM_PEAKS": NUM_PEAKS,
        "TAIL_PEAK": TAIL_PEAK,
        "LOW_FACTOR": LOW_FACTOR,
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
    START_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    IN_ONE: tl.constexpr,
    NUM_PEAKS: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    TAIL_PEAK: tl.constexpr,
    LOW_FACTOR: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source, out = values + row * stride, rounded + row * width
    destination = out + (width - size)
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
        t = tl.load(narrow + row * narrow_stride + ranks, mask=ranks < RANKS, other=0.0).to(tl.float32)
        t *= _tail_factor(peaks, NUM_PEAKS, TAIL_PEAK)
        scale = tl.maximum(scale, tl.max(tl.abs(t)) / TAIL_PEAK)
        _write_three(out + ranks, t * (1.0 / scale), ranks < RANKS, RANKS, LOW_FACTOR)
    tl.store(scales + row, scale)
    between = tl.arange(0, START_BLOCK) + 3 * RANKS
    tl.store(out + between, tl.zeros((START_BLOCK,), dtype=tl.float32).to(tl.float8e4nv), mask=between < width - size)
    if IN_ONE:
        tl.store(destination + columns, (x * (1.0 / scale)).to(tl.float8e4nv), mask=columns < size)
    else:
        for offset in range(0, size, BLOCK):
            inside = offset + columns < size
            part = tl.load(source + offset + columns, mask=inside, other=0.0).to(tl.float32)
            tl.store(destination + offset + columns, (part * (1.0 / scale)).to(tl.float8e4nv), mask=inside)


@triton.jit
def _tail_factor(peaks, NUM_PEAKS: tl.constexpr, TAIL_PEAK: tl.constexpr):
    return tl.maximum(tl.max(tl.load(peaks + tl.arange(0, NUM_PEAKS))) / TAIL_PEAK, 1.0)


@triton.jit
def _write_three(place, t, inside, RANKS: tl.constexpr, LOW_FACTOR: tl.constexpr):
    """Write the three columns of an adapter's narrow side: hi, lo and hi / LOW_FACTOR."""
    nearest = _nearest_in_e4m3(t)
    tl.store(place, nearest.to(tl.float8e4nv), mask=inside)
    tl.store(place + RANKS, (t - nearest).to(tl.float8e4nv), mask=inside)
    tl.store(place + 2 * RANKS, (nearest * (1.0 / LOW_FACTOR)).to(tl.float8e4nv), mask=inside)


def write_adapter_columns(rounded: RoundedRows, values: Tensor, narrow: Tensor | None, peaks: Tensor) -> None:
    """Make rows that are rounded already what `round_rows` makes; see `plain.write_adapter_columns`."""
    if not rounded.start:
        return
    tokens, columns = values.shape
    _write_adapter_columns[(triton.cdiv(tokens, ROWS_AT_ONCE),)](
        values,
        values if narrow is None else narrow,
        peaks,
        rounded.numbers,
        rounded.scales,
        values.stride(0),
        0 if narrow is None else narrow.stride(0),
        rounded.numbers.stride(0),
        tokens,
        columns,
        rounded.start,
        **adapter_settings_of(columns, 0 if narrow is None else narrow.shape[1], rounded.start),
    )


def adapter_settings_of(columns: int, ranks: int, start: int) -> dict[str, int | float | bool]:
    """Return what `_write_adapter_columns` is compiled with for rows of some size."""
    return _settings_of_adapter(ranks, start) | {
        "ROWS": ROWS_AT_ONCE,
        "BLOCK": min(COLUMNS_ROUNDED_AGAIN, triton.next_power_of_2(columns)),
        "num_warps": 4,
    }


@triton.jit
def _write_adapter_columns(
    values,
    narrow,
    peaks,
    rounded,
    scales,
    stride,
    narrow_stride,
    width,
    num_rows,
    size,
    start,
    RANKS: tl.constexpr,
    RANKS_BLOCK: tl.constexpr,
    START_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_PEAKS: tl.constexpr,
    TAIL_PEAK: tl.constexpr,
    LOW_FACTOR: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < num_rows
    out = rounded + rows[:, None] * width
    between = tl.arange(0, START_BLOCK)[None, :] + 3 * RANKS
    zeros = tl.zeros((ROWS, START_BLOCK), dtype=tl.float32).to(tl.float8e4nv)
    tl.store(out + between, zeros, mask=in_rows[:, None] & (between < start))
    if RANKS > 0:
        ranks = tl.arange(0, RANKS_BLOCK)[None, :]
        inside = in_rows[:, None] & (ranks < RANKS)
        t = tl.load(narrow + rows[:, None] * narrow_stride + ranks, mask=inside, other=0.0).to(tl.float32)
        t *= _tail_factor(peaks, NUM_PEAKS, TAIL_PEAK)
        own = tl.load(scales + rows, mask=in_rows, other=1.0)
        scale = tl.maximum(own, tl.max(tl.abs(t), axis=1) / TAIL_PEAK)
        _write_three(out + ranks, t * (1.0 / scale)[:, None], inside, RANKS, LOW_FACTOR)
        grown = (scale > own) & in_rows
        if tl.max(grown.to(tl.int32)) > 0:
            tl.store(scales + rows, scale, mask=grown)
            for offset in range(0, size, BLOCK):
                columns = offset + tl.arange(0, BLOCK)[None, :]
                again = grown[:, None] & (columns < size)
                x = tl.load(values + rows[:, None] * stride + columns, mask=again, other=0.0).to(tl.float32)
                tl.store(out + start + columns, (x * (1.0 / scale)[:, None]).to(tl.float8e4nv), mask=again)


def places_of(rounded: RoundedRows | None, otherwise: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return what a kernel that can round its rows gets: where their own numbers and scales go, and a stride.

    Args:
        rounded: where its rows go in fp8; None where they do not.
        otherwise: some tensor, which stands there for what is not used.
    """
    if rounded is None:
        return otherwise, otherwise, 0
    return rounded.numbers[:, rounded.start :], rounded.scales, rounded.numbers.stride(0)


def rounding_of(rounded: RoundedRows | None) -> dict[str, bool | float]:
    """Return what a kernel that can round its rows is compiled with."""
    return {"IS_ROUNDED": rounded is not None, "ROW_PEAK": ROW_PEAK, "SMALLEST_SCALE": SMALLEST_SCALE}


@triton.jit
def round_row(x, destination, columns, inside, scale_place, ROW_PEAK: tl.constexpr, SMALLEST_SCALE: tl.constexpr):
    """Write a row that a program has just computed in fp8, and its scale.

    Args:
        x: fp32, zeros where there is no column.
        destination: of the row's first number.
        columns: of the numbers.
        inside: whether there is such a column.
        scale_place: where the scale goes.
    """
    scale = tl.maximum(tl.max(tl.abs(x)) / ROW_PEAK, SMALLEST_SCALE)
    tl.store(scale_place, scale)
    tl.store(destination + columns, (x * (1.0 / scale)).to(tl.float8e4nv), mask=inside)


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
    """Return what writes the columns of adapters, two launches for each way they lie; see `plain.make_tail_writer`."""
    by_ranks = [tail for tail in tails if tail.adapter.stride(1) == 1]
    by_rows = [tail for tail in tails if tail.adapter.stride(1) != 1]
    writers = [_tail_writer(some, lies) for some, lies in ((by_ranks, True), (by_rows, False)) if some]

    def write() -> None:
        for writer in writers:
            writer()

    return write


def _tail_writer(tails: Sequence[AdapterTail], ranks_lie_together: bool) -> Callable[[], None]:
    table = torch.tensor(
        [
            (
                tail.adapter.data_ptr(),
                max(tail.adapter.stride()),
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
    settings = {
        "FORM": FORMS[tails[0].adapter.dtype],
        "RANKS_LIE_TOGETHER": ranks_lie_together,
        "ROWS": ADAPTER_ROWS_AT_ONCE,
        "RANKS": min(RANKS_AT_ONCE, triton.next_power_of_2(max(tail.adapter.shape[1] for tail in tails))),
        "NUM_PEAKS": NUM_PEAKS,
        "num_warps": 8,
    }
    grid, kept = (len(tails), NUM_PEAKS), list(tails)  # the table has their addresses only

    def write() -> None:
        assert kept
        _find_peaks[grid](table, **settings)
        _write_tails[grid](table, **settings, TAIL_PEAK=TAIL_PEAK, LOW_FACTOR=LOW_FACTOR)

    return write


@triton.jit
def _scaled_adapter(
    entry,
    first_row,
    first_rank,
    FORM: tl.constexpr,
    RANKS_LIE_TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Return a part of an adapter divided by its rows' scales, [ROWS, RANKS], read in the order in which it lies."""
    adapter, stride = tl.load(entry).to(tl.pointer_type(FORM)), tl.load(entry + 1)
    num_rows, num_ranks = tl.load(entry + 2), tl.load(entry + 3)
    rows, ranks = first_row + tl.arange(0, ROWS), first_rank + tl.arange(0, RANKS)
    if RANKS_LIE_TOGETHER:
        inside = (rows < num_rows)[:, None] & (ranks < num_ranks)[None, :]
        numbers = tl.load(adapter + rows[:, None] * stride + ranks[None, :], mask=inside, other=0.0)
    else:
        inside = (ranks < num_ranks)[:, None] & (rows < num_rows)[None, :]
        numbers = tl.trans(tl.load(adapter + ranks[:, None] * stride + rows[None, :], mask=inside, other=0.0))
    scales = tl.load(entry + 6).to(tl.pointer_type(tl.float32))
    scale = tl.load(scales + rows, mask=rows < num_rows, other=1.0)
    return numbers.to(tl.float32) / scale[:, None]


@triton.jit
def _find_peaks(
    table,
    FORM: tl.constexpr,
    RANKS_LIE_TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    NUM_PEAKS: tl.constexpr,
):
    entry = table + tl.program_id(0) * 8
    num_rows, num_ranks = tl.load(entry + 2), tl.load(entry + 3)
    largest = tl.zeros((ROWS, RANKS), dtype=tl.float32)
    for row in range(tl.program_id(1).to(tl.int64) * ROWS, num_rows, NUM_PEAKS * ROWS):
        for rank in range(0, num_ranks, RANKS):
            scaled = _scaled_adapter(entry, row, rank, FORM, RANKS_LIE_TOGETHER, ROWS, RANKS)
            largest = tl.maximum(largest, tl.abs(scaled))
    peaks = tl.load(entry + 7).to(tl.pointer_type(tl.float32))
    tl.store(peaks + tl.program_id(1), tl.max(largest))


@triton.jit
def _write_tails(
    table,
    FORM: tl.constexpr,
    RANKS_LIE_TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    NUM_PEAKS: tl.constexpr,
    TAIL_PEAK: tl.constexpr,
    LOW_FACTOR: tl.constexpr,
):
    entry = table + tl.program_id(0) * 8
    num_rows, num_ranks = tl.load(entry + 2), tl.load(entry + 3)
    numbers, stride = tl.load(entry + 4).to(tl.pointer_type(tl.float8e4nv)), tl.load(entry + 5)
    factor = _tail_factor(tl.load(entry + 7).to(tl.pointer_type(tl.float32)), NUM_PEAKS, TAIL_PEAK)
    for row in range(tl.program_id(1).to(tl.int64) * ROWS, num_rows, NUM_PEAKS * ROWS):
        for rank in range(0, num_ranks, RANKS):
            scaled = _scaled_adapter(entry, row, rank, FORM, RANKS_LIE_TOGETHER, ROWS, RANKS) / factor
            nearest = _nearest_in_e4m3(scaled)
            high, low = nearest.to(tl.float8e4nv), ((scaled - nearest) * LOW_FACTOR).to(tl.float8e4nv)
            rows, ranks = row + tl.arange(0, ROWS), rank + tl.arange(0, RANKS)
            inside = (rows < num_rows)[:, None] & (ranks < num_ranks)[None, :]
            place = numbers + rows[:, None] * stride + ranks[None, :]
            tl.store(place, high, mask=inside)
            tl.store(place + num_ranks, high, mask=inside)
            tl.store(place + 2 * num_ranks, low, mask=inside)
