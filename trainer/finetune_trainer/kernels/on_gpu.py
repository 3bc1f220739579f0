"""The kernels of a fused step in Triton; `plain` tells what each computes.

Each is bound by memory: it reads every input once and writes every output once. A program owns a row, or a stretch of a
row, as rows are long (4,096 features and more). Arithmetic is in fp32.
"""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS_PER_PROGRAM = 2048
VOCABULARY_STRETCH = 8192
MAX_PROGRAMS_PER_MATRIX = 64


def add_and_normalise(
    residual: Tensor, addend: Tensor | None, weight: Tensor, epsilon: float, normalised: Tensor
) -> tuple[Tensor, Tensor]:
    """Add two streams and write the RMS norm of their sum; see `plain.add_and_normalise`."""
    tokens, size = residual.shape
    summed = residual if addend is None else torch.empty_like(residual)
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


def rotate(
    heads: Tensor, num_heads: int, head_dim: int, cosine: Tensor, sine: Tensor, positions: Tensor, interleaved: bool
) -> None:
    """Turn the first heads of each row by their positions' angles; see `plain.rotate`."""
    _rotate[(len(heads),)](
        heads,
        cosine,
        sine,
        positions,
        heads.stride(0),
        num_heads * head_dim // 2,
        HALF=head_dim // 2,
        INTERLEAVED=interleaved,
        BLOCK=triton.next_power_of_2(num_heads * head_dim // 2),
        num_warps=8,
    )


@triton.jit
def _pair(index, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Return where the two features of a pair are in a row of heads."""
    head, pair = index // HALF, index % HALF
    if INTERLEAVED:
        first = head * 2 * HALF + 2 * pair
        return first, first + 1
    first = head * 2 * HALF + pair
    return first, first + HALF


@triton.jit
def _rotate(
    heads,
    cosine,
    sine,
    positions,
    stride,
    num_pairs,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < num_pairs
    position = tl.load(positions + row)
    cos = tl.load(cosine + position * HALF + index % HALF)
    sin = tl.load(sine + position * HALF + index % HALF)
    first, second = _pair(index, HALF, INTERLEAVED)
    start = heads + row * stride
    a = tl.load(start + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(start + second, mask=inside, other=0.0).to(tl.float32)
    tl.store(start + first, a * cos - b * sin, mask=inside)
    tl.store(start + second, b * cos + a * sin, mask=inside)


def rotate_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor,
    interleaved: bool,
    out: Tensor,
) -> None:
    """Turn the gradients of queries and keys back, and lay all three side by side; see `plain.rotate_backward`."""
    head_dim, start = queries.shape[-1], 0
    for gradient, is_turned in ((queries, True), (keys, True), (values, False)):
        width = gradient.shape[1] * head_dim
        _rotate_backward[(len(gradient),)](
            gradient,
            cosine,
            sine,
            positions,
            out[:, start:],
            gradient.stride(0),
            gradient.stride(1),
            gradient.stride(2),
            out.stride(0),
            width // 2,
            HALF=head_dim // 2,
            INTERLEAVED=interleaved,
            IS_TURNED=is_turned,
            BLOCK=triton.next_power_of_2(width // 2),
            num_warps=4,
        )
        start += width


@triton.jit
def _rotate_backward(
    gradient,
    cosine,
    sine,
    positions,
    out,
    token_stride,
    head_stride,
    feature_stride,
    out_stride,
    num_pairs,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    IS_TURNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < num_pairs
    first, second = _pair(index, HALF, INTERLEAVED)
    source = gradient + row * token_stride + (index // HALF) * head_stride
    a = tl.load(source + (first % (2 * HALF)) * feature_stride, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + (second % (2 * HALF)) * feature_stride, mask=inside, other=0.0).to(tl.float32)
    if IS_TURNED:
        position = tl.load(positions + row)
        cos = tl.load(cosine + position * HALF + index % HALF)
        sin = tl.load(sine + position * HALF + index % HALF)
        a, b = a * cos + b * sin, b * cos - a * sin
    tl.store(out + row * out_stride + first, a, mask=inside)
    tl.store(out + row * out_stride + second, b, mask=inside)


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


def gate_backward(gate_and_up: Tensor, gradient: Tensor, out: Tensor) -> None:
    """Write the gradients of gate and up, and compute their product again; see `plain.gate_backward`."""
    tokens, size = gradient.shape
    _gate_backward[(tokens, triton.cdiv(size, COLUMNS_PER_PROGRAM))](
        gate_and_up,
        gradient,
        out,
        gate_and_up.stride(0),
        gradient.stride(0),
        out.stride(0),
        size,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=8,
    )


@triton.jit
def _gate_backward(gate_and_up, gradient, out, stride, gradient_stride, out_stride, size, BLOCK: tl.constexpr):
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


def make_copier(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Return what copies matrices to their places in one launch; see `plain.make_copier`."""
    rows = [
        (matrix.data_ptr(), place.data_ptr(), place.shape[0], place.shape[1], place.stride(0))
        for place, matrix in pairs
    ]
    device, dtype = pairs[0][0].device, pairs[0][0].dtype
    table = torch.tensor(rows, dtype=torch.int64, device=device)
    largest = max(place.numel() for place, _ in pairs)
    grid = (len(rows), min(triton.cdiv(largest, COLUMNS_PER_PROGRAM), MAX_PROGRAMS_PER_MATRIX))
    form = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]
    kept = list(pairs)  # the table has their addresses only

    def copy() -> None:
        assert kept
        _copy[grid](table, grid[1], FORM=form, BLOCK=COLUMNS_PER_PROGRAM, num_warps=8)

    return copy


@triton.jit
def _copy(table, programs_per_matrix, FORM: tl.constexpr, BLOCK: tl.constexpr):
    row = table + tl.program_id(0) * 5
    matrix = tl.load(row).to(tl.pointer_type(tl.float32))
    place = tl.load(row + 1).to(tl.pointer_type(FORM))
    columns, stride = tl.load(row + 3), tl.load(row + 4)
    count = tl.load(row + 2) * columns
    start = tl.program_id(1).to(tl.int64) * BLOCK
    for offset in range(start, count, programs_per_matrix * BLOCK):
        index = offset + tl.arange(0, BLOCK)
        inside = index < count
        value = tl.load(matrix + index, mask=inside, other=0.0)
        tl.store(place + (index // columns) * stride + index % columns, value.to(FORM), mask=inside)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each row, and replace the logits by its gradient; see `plain.cross_entropy`."""
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        block = min(VOCABULARY_STRETCH, triton.next_power_of_2(vocabulary))
        _cross_entropy[(rows,)](
            logits, targets, losses, logits.stride(0), vocabulary, BLOCK=block, num_warps=max(1, min(16, block // 256))
        )
    return losses


@triton.jit
def _cross_entropy(logits, targets, losses, stride, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    target = tl.load(targets + row)
    at_target = tl.load(start + target).to(tl.float32)
    # One pass for the largest logit and the sum of exponentials (Milakov and Gimelshein 2018,
    # https://arxiv.org/abs/1805.02867), one for the gradient.
    largest = float("-inf")
    total = 0.0
    for offset in range(0, vocabulary, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        x = tl.load(start + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger))
        largest = larger
    log_total = largest + tl.log(total)
    for offset in range(0, vocabulary, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        x = tl.load(start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        share = tl.exp(x - log_total)
        tl.store(start + columns, tl.where(columns == target, share - 1.0, share), mask=inside)
    tl.store(losses + row, log_total - at_target)


def drop(values: Tensor, probability: float, seed: int, out: Tensor) -> None:
    """Set each value to zero with a probability, and divide the others by what is left of one; see `plain.drop`."""
    rows, columns = values.shape
    _drop[(rows, triton.cdiv(columns, COLUMNS_PER_PROGRAM))](
        values,
        values,
        out,
        values.stride(0),
        out.stride(0),
        columns,
        _start_word(seed),
        int(probability * 2**32),
        1 / (1 - probability),
        ADDS=False,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=8,
    )


def add_dropped(total: Tensor, values: Tensor, probability: float, seed: int) -> None:
    """Add values to a total as `drop` would leave them; see `plain.add_dropped`."""
    rows, columns = values.shape
    _drop[(rows, triton.cdiv(columns, COLUMNS_PER_PROGRAM))](
        values,
        total,
        total,
        values.stride(0),
        total.stride(0),
        columns,
        _start_word(seed),
        int(probability * 2**32),
        1 / (1 - probability),
        ADDS=True,
        BLOCK=COLUMNS_PER_PROGRAM,
        num_warps=8,
    )


def _start_word(seed: int) -> int:
    """Return the seed spread over 32 bits, as a signed number, so that Triton takes every seed for the same type."""
    word = seed * 0x9E3779B1 & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


@triton.jit(do_not_specialize=["start_word", "threshold"])
def _drop(
    values,
    total,
    out,
    stride,
    out_stride,
    size,
    start_word,
    threshold,
    scale,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    word = (row * size + columns + start_word).to(tl.uint32)
    word = (word ^ (word >> 16)) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x846CA68B
    word = word ^ (word >> 16)
    x = tl.load(values + row * stride + columns, mask=inside, other=0.0).to(tl.float32) * scale
    kept = tl.where(word.to(tl.int64) >= threshold, x, 0.0)
    if ADDS:
        kept += tl.load(total + row * out_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + columns, kept, mask=inside)
