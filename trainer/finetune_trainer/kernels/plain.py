"""The kernels of a fused step in plain PyTorch: what they compute, readable, on any device and in any precision."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from finetune_trainer.kernels.formats import (
    E4M3,
    LOW_FACTOR,
    NF4_BLOCK,
    ROW_PEAK,
    SMALLEST_SCALE,
    TAIL_PEAK,
    AdapterTail,
    RoundedRows,
)


def add_and_normalise(
    residual: Tensor,
    addend: Tensor | None,
    weight: Tensor,
    epsilon: float,
    normalised: Tensor,
    summed: Tensor | None = None,
    rounded: RoundedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Add two streams and write the RMS norm of their sum (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    Args:
        residual: [tokens, hidden_size].
        addend: the same shape; None adds nothing.
        weight: of the norm, [hidden_size].
        epsilon: of the norm.
        normalised: [tokens, hidden_size], overwritten.
        summed: where the sum goes, [tokens, hidden_size], if not into memory of its own.
        rounded: where the norm goes in fp8 besides; None writes none.

    Returns:
        the sum, [tokens, hidden_size], and one over its root mean square, fp32 [tokens].
    """
    summed = residual if addend is None else torch.add(residual, addend, out=summed)
    wide = _widened(summed)
    inverse_rms = torch.rsqrt(wide.square().mean(-1) + epsilon)
    normalised.copy_(wide * inverse_rms[:, None] * _widened(weight))
    _round_into(rounded, normalised)
    return summed, inverse_rms


def normalise_backward(
    gradient: Tensor,
    hidden: Tensor,
    inverse_rms: Tensor,
    weight: Tensor,
    residual_gradient: Tensor,
    out: Tensor,
    rounded: RoundedRows | None = None,
) -> None:
    """Write the gradient of a residual stream that also goes into a norm, and compute the norm's output again.

    Args:
        gradient: of the norm's output, [tokens, hidden_size]; overwritten with that output.
        hidden: input of the norm, [tokens, hidden_size].
        inverse_rms: fp32 [tokens].
        weight: [hidden_size].
        residual_gradient: of the stream behind the norm, [tokens, hidden_size].
        out: [tokens, hidden_size], overwritten; may be `residual_gradient`.
        rounded: where it goes in fp8 besides; None writes none.
    """
    scaled = _widened(hidden) * inverse_rms[:, None]
    weighted = _widened(gradient) * _widened(weight)
    along = (weighted * scaled).mean(-1, keepdim=True)
    out.copy_(_widened(residual_gradient) + inverse_rms[:, None] * (weighted - scaled * along))
    gradient.copy_(scaled * _widened(weight))
    _round_into(rounded, out)


def rotate(
    heads: Tensor, num_heads: int, head_dim: int, cosine: Tensor, sine: Tensor, positions: Tensor, interleaved: bool
) -> None:
    """Turn the first heads of each row by their positions' angles (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    Args:
        heads: [tokens, at least num_heads * head_dim], changed in place.
        num_heads: how many heads are turned.
        head_dim: features of a head.
        cosine: fp32 [max_positions, head_dim / 2].
        sine: the same shape.
        positions: int64 [tokens].
        interleaved: a pair is features 2i and 2i + 1 of a head, otherwise i and i + head_dim / 2.
    """
    turned = heads[:, : num_heads * head_dim]
    turned.copy_(_turned(turned, head_dim, cosine[positions], sine[positions], interleaved))


def rotate_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor,
    interleaved: bool,
    out: Tensor,
    rounded: RoundedRows | None = None,
) -> None:
    """Turn the gradients of queries and keys back, and lay all three side by side.

    Args:
        queries: gradient of the turned queries, [tokens, num_heads, head_dim], any distances.
        keys: likewise, [tokens, num_kv_heads, head_dim].
        values: likewise; not turned.
        cosine: as in `rotate`.
        sine: as in `rotate`.
        positions: as in `rotate`.
        interleaved: as in `rotate`.
        out: [tokens, (num_heads + 2 * num_kv_heads) * head_dim], overwritten.
        rounded: where it goes in fp8 besides; None writes none.
    """
    start = 0
    for gradient, is_turned in ((queries, True), (keys, True), (values, False)):
        columns = gradient.flatten(1)
        if is_turned:
            columns = _turned(columns, queries.shape[-1], cosine[positions], -sine[positions], interleaved)
        out[:, start : start + columns.shape[1]] = columns
        start += columns.shape[1]
    _round_into(rounded, out)


def gate(gate_and_up: Tensor, out: Tensor, rounded: RoundedRows | None = None) -> None:
    """Write silu(gate) * up (SwiGLU, Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        gate_and_up: [tokens, 2 * intermediate_size], the gate first.
        out: [tokens, intermediate_size], overwritten.
        rounded: where it goes in fp8 besides; None writes none.
    """
    gated, up = _widened(gate_and_up).chunk(2, dim=1)
    out.copy_(functional.silu(gated) * up)
    _round_into(rounded, out)


def gate_backward(
    gate_and_up: Tensor, gradient: Tensor, out: Tensor, wants_product: bool, rounded: RoundedRows | None = None
) -> None:
    """Write the gradients of gate and up, and compute their product again where an adapter needs it.

    Args:
        gate_and_up: [tokens, 2 * intermediate_size].
        gradient: of the product, [tokens, intermediate_size]; overwritten with the product.
        out: [tokens, 2 * intermediate_size], overwritten.
        wants_product: else the gradient stays as it is.
        rounded: where `out` goes in fp8 besides; None writes none.
    """
    gated, up = _widened(gate_and_up).chunk(2, dim=1)
    wide = _widened(gradient)
    sigmoid = torch.sigmoid(gated)
    silu = gated * sigmoid
    out.copy_(torch.cat([wide * up * sigmoid * (1 + gated - silu), wide * silu], dim=1))
    if wants_product:
        gradient.copy_(silu * up)
    _round_into(rounded, out)


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
    """Do `gate_backward`, and add to the adapters' gradients what its results are factors of, while they are at hand.

    Args:
        gate_and_up: [tokens, 2 * intermediate_size].
        gradient: of the product, [tokens, intermediate_size]; what it holds afterwards is undefined.
        out: [tokens, 2 * intermediate_size], overwritten.
        narrow_gradient: u of the adapter behind the product, [tokens, at least rank].
        narrow: t of the adapters of gate and up, [tokens, at least 2 * rank].
        gradient_a: of A behind the product, [rank, intermediate_size], added to.
        gradient_b_gate: of B of the gate, [intermediate_size, rank], added to.
        gradient_b_up: likewise.
    """
    rank, size = gradient_a.shape
    gate_backward(gate_and_up, gradient, out, True)
    wide_out, wide_narrow = _widened(out), _widened(narrow)
    gradient_a.add_(_widened(narrow_gradient)[:, :rank].T @ _widened(gradient))
    gradient_b_gate.add_(wide_out[:, :size].T @ wide_narrow[:, :rank])
    gradient_b_up.add_(wide_out[:, size:].T @ wide_narrow[:, rank : 2 * rank])


def make_copier(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Return what copies matrices to their places, rounding them to the places' number format.

    Args:
        pairs: place and matrix, of one shape; a matrix is fp32 and contiguous. Both are where they are for good.
    """
    places, matrices = [place for place, _ in pairs], [matrix.detach() for _, matrix in pairs]
    return lambda: torch._foreach_copy_(places, matrices)


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a table, [number of rows, columns]; with a GPU the table may be in the host's pinned memory."""
    return functional.embedding(rows, table)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(logits)[target] of each row, and replace the logits by its gradient.

    Args:
        logits: [rows, vocab_size], overwritten.
        targets: int64 [rows].

    Returns:
        fp32 [rows].
    """
    log_shares = torch.log_softmax(_widened(logits), dim=-1)
    losses = -log_shares.gather(1, targets[:, None])[:, 0]
    gradient = log_shares.exp()
    # d(-log softmax(x)[t]) / dx = softmax(x) - onehot(t)
    gradient.scatter_add_(1, targets[:, None], torch.full_like(gradient[:, :1], -1.0))
    logits.copy_(gradient)
    return losses


def drop(values: Tensor, probability: float, seed: Tensor, first_row: int, out: Tensor) -> None:
    """Set each value to zero with a probability, and divide the others by what is left of one.

    Args:
        values: [rows, columns].
        probability: of a zero.
        seed: int64 scalar below 2**31, where the values are; names which are dropped, together with their place.
        first_row: place of the first row, where the values are rows of a larger matrix.
        out: [rows, columns], overwritten.
    """
    out.copy_(_widened(values) * _kept(values, probability, seed, first_row) / (1 - probability))


def add_dropped(total: Tensor, values: Tensor, probability: float, seed: Tensor, first_row: int) -> None:
    """Add values to a total as `drop` would leave them; the backward half of `drop`."""
    kept = _kept(values, probability, seed, first_row)
    total.copy_(_widened(total) + _widened(values) * kept / (1 - probability))


# --- fp8 --------------------------------------------------------------------------------------------------------------


def round_rows(values: Tensor, narrow: Tensor | None, peaks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Round rows to fp8, each divided by a scale of its own, with three columns for each one of an adapter's.

    Args:
        values: [tokens, columns].
        narrow: what the adapter's columns are multiplied with, [tokens, ranks]; None for none.
        peaks: of the adapter's columns, see `make_tail_writer`.
        width: columns of the result; those that are left before the values are zero.

    Returns:
        e4m3 [tokens, width]: hi | lo | hi / LOW_FACTOR | zeros | values, where hi + lo is the narrow one; and the
        scales, fp32 [tokens].
    """
    numbers = torch.empty(len(values), width, dtype=E4M3, device=values.device)
    scales = torch.empty(len(values), dtype=torch.float32, device=values.device)
    rounded = RoundedRows(numbers, scales, width - values.shape[1])
    _round_into(rounded, values)
    write_adapter_columns(rounded, values, narrow, peaks)
    return numbers, scales


def write_adapter_columns(rounded: RoundedRows, values: Tensor, narrow: Tensor | None, peaks: Tensor) -> None:
    """Make rows that are rounded already what `round_rows` would have made of them.

    Where a row's scale leaves an adapter's columns no room, which is rare, the row gets a larger one and is rounded
    again.

    Args:
        rounded: the rows, whose columns for the adapter are overwritten.
        values: what they were rounded from, [tokens, columns].
        narrow: as in `round_rows`.
        peaks: as in `round_rows`.
    """
    rounded.numbers[:, : rounded.start] = torch.zeros((), dtype=E4M3, device=values.device)
    if narrow is None:
        return
    tail = _widened(narrow) * _tail_factor(peaks)
    scales = torch.maximum(rounded.scales, tail.abs().amax(1).float() / TAIL_PEAK)
    grown = scales > rounded.scales
    rounded.numbers[grown, rounded.start :] = (_widened(values)[grown] / scales[grown, None]).to(E4M3)
    rounded.scales.copy_(scales)
    high, rest = _in_two(tail / scales[:, None])
    _write_side_by_side(rounded.numbers, high, rest, high / LOW_FACTOR)


def _round_into(rounded: RoundedRows | None, values: Tensor) -> None:
    if rounded is None:
        return
    wide = _widened(values)
    rounded.scales.copy_((wide.abs().amax(1) / ROW_PEAK).clamp(min=SMALLEST_SCALE))
    rounded.numbers[:, rounded.start :] = (wide / rounded.scales[:, None]).to(E4M3)


def multiply_rounded(
    rows: Tensor, row_scales: Tensor, columns: Tensor, column_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return a product of two matrices in fp8.

    Args:
        rows: e4m3 [m, k].
        row_scales: fp32 [m].
        columns: e4m3 [n, k].
        column_scales: fp32 [n].
        dtype: of the result, [m, n].
    """
    return ((rows.float() @ columns.float().T) * row_scales[:, None] * column_scales).to(dtype)


def make_tail_writer(tails: Sequence[AdapterTail]) -> Callable[[], None]:
    """Return what writes the columns of adapters before those of weights in fp8: hi, hi and LOW_FACTOR * lo.

    The adapter is divided by its row's scale, and where that would not leave it room, by a factor, which `round_rows`
    multiplies its narrow side with. The factor follows from `AdapterTail.peaks`, whose largest is the largest number of
    the adapter divided by its row's scale.
    """

    def write() -> None:
        for adapter, numbers, scales, peaks in tails:
            scaled = _widened(adapter) / scales[:, None]
            peaks.zero_()
            peaks[0] = scaled.abs().max()
            high, rest = _in_two(scaled / _tail_factor(peaks))
            _write_side_by_side(numbers, high, high, rest * LOW_FACTOR)

    return write


def _tail_factor(peaks: Tensor) -> Tensor:
    return (peaks.max() / TAIL_PEAK).clamp(min=1.0)


def _write_side_by_side(out: Tensor, *parts: Tensor) -> None:
    # Not torch.cat: on CPUs not every version of it takes e4m3.
    for number, part in enumerate(parts):
        out[:, number * part.shape[1] : (number + 1) * part.shape[1]] = part.to(E4M3)


def _in_two(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest values that e4m3 holds, and what is left."""
    high = values.to(E4M3).to(values.dtype)
    return high, values - high


# --- NF4 --------------------------------------------------------------------------------------------------------------


def expand_nf4(packed: Tensor, peaks: Tensor, values: Tensor, out: Tensor) -> None:
    """Write a weight in NF4 as numbers.

    Args:
        packed: two numbers a byte, the first in the high half, uint8 [rows * columns / 2].
        peaks: largest magnitude of each block, [rows * columns / NF4_BLOCK].
        values: NF4_VALUES, fp32 [16].
        out: [rows, columns], overwritten.
    """
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1, NF4_BLOCK)
    out.copy_((values[codes.int()] * peaks.float()[:, None]).view(out.shape))


def _widened(values: Tensor) -> Tensor:
    """Return the values in fp32, or as they are where they are wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _turned(columns: Tensor, head_dim: int, cosine: Tensor, sine: Tensor, interleaved: bool) -> Tensor:
    heads = _widened(columns).reshape(len(columns), -1, head_dim)
    if interleaved:
        first, second = heads[..., 0::2], heads[..., 1::2]
    else:
        first, second = heads.chunk(2, dim=-1)
    cosine, sine = cosine[:, None], sine[:, None]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    joined = torch.stack(turned, dim=-1) if interleaved else torch.cat(turned, dim=-1)
    return joined.flatten(1)


def _kept(values: Tensor, probability: float, seed: Tensor, first_row: int) -> Tensor:
    """Say which values stay, bool of their shape: those whose place hashes to a large number.

    The hash is lowbias32 (https://github.com/skeeto/hash-prospector), which a GPU computes faster than it reads. Its
    32-bit words live in the low halves of int64 here.
    """
    start, mask = seed * 0x9E3779B1 + first_row * values.shape[1], 0xFFFFFFFF
    word = torch.arange(values.numel(), device=values.device) + start
    word = word & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        word = ((word ^ (word >> shift)) * factor) & mask
    word = word ^ (word >> 16)
    return (word >= int(probability * 2**32)).view(values.shape)
