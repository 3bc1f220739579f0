"""Rotary positions; a program owns a token with all of its heads."""

import triton
import triton.language as tl
from torch import Tensor


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
