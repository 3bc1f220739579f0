"""Rotary positions; a program owns a token with all of its heads."""

import triton
import triton.language as tl
from torch import Tensor

from finetune_trainer.kernels.formats import RoundedRows
from finetune_trainer.kernels.on_gpu.fp8 import places_of, rounding_of


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
    rounded: RoundedRows | None = None,
) -> None:
    """Turn the gradients of queries and keys back, and lay all three side by side; see `plain.rotate_backward`."""
    tokens, num_heads, head_dim = queries.shape
    query_pairs, key_pairs = num_heads * head_dim // 2, keys.shape[1] * head_dim // 2
    _rotate_backward[(tokens,)](
        queries,
        keys,
        values,
        cosine,
        sine,
        positions,
        out,
        *places_of(rounded, out),
        *queries.stride(),
        *keys.stride(),
        *values.stride(),
        out.stride(0),
        query_pairs,
        key_pairs,
        HALF=head_dim // 2,
        INTERLEAVED=interleaved,
        **rounding_of(rounded),
        QUERY_BLOCK=triton.next_power_of_2(query_pairs),
        KEY_BLOCK=triton.next_power_of_2(key_pairs),
        num_warps=8,
    )


@triton.jit
def _rotate_backward(
    queries,
    keys,
    values,
    cosine,
    sine,
    positions,
    out,
    rounded,
    rounded_scales,
    rounded_stride,
    query_token_stride,
    query_head_stride,
    query_feature_stride,
    key_token_stride,
    key_head_stride,
    key_feature_stride,
    value_token_stride,
    value_head_stride,
    value_feature_stride,
    out_stride,
    query_pairs,
    key_pairs,
    HALF: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    IS_ROUNDED: tl.constexpr,
    ROW_PEAK: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    index, key_index = tl.arange(0, QUERY_BLOCK), tl.arange(0, KEY_BLOCK)
    position = tl.load(positions + row)
    cosine, sine = cosine + position * HALF, sine + position * HALF

    source = queries + row * query_token_stride
    a, b = _load_pairs(source, query_head_stride, query_feature_stride, index, query_pairs, HALF, INTERLEAVED)
    a, b = _turned_back(a, b, cosine, sine, index, HALF)
    source = keys + row * key_token_stride
    key_a, key_b = _load_pairs(source, key_head_stride, key_feature_stride, key_index, key_pairs, HALF, INTERLEAVED)
    key_a, key_b = _turned_back(key_a, key_b, cosine, sine, key_index, HALF)
    source = values + row * value_token_stride
    value_a, value_b = _load_pairs(
        source, value_head_stride, value_feature_stride, key_index, key_pairs, HALF, INTERLEAVED
    )

    form = out.dtype.element_ty
    a, b, key_a = a.to(form), b.to(form), key_a.to(form)
    key_b, value_a, value_b = key_b.to(form), value_a.to(form), value_b.to(form)
    out += row * out_stride
    _store_pairs(out, a, b, index, query_pairs, HALF, INTERLEAVED)
    _store_pairs(out + 2 * query_pairs, key_a, key_b, key_index, key_pairs, HALF, INTERLEAVED)
    _store_pairs(out + 2 * (query_pairs + key_pairs), value_a, value_b, key_index, key_pairs, HALF, INTERLEAVED)
    if IS_ROUNDED:
        peak = tl.maximum(_peak(a, b), tl.maximum(_peak(key_a, key_b), _peak(value_a, value_b)))
        scale = tl.maximum(peak / ROW_PEAK, SMALLEST_SCALE)
        tl.store(rounded_scales + row, scale)
        a, b, key_a = _in_fp8(a, scale), _in_fp8(b, scale), _in_fp8(key_a, scale)
        key_b, value_a, value_b = _in_fp8(key_b, scale), _in_fp8(value_a, scale), _in_fp8(value_b, scale)
        out = rounded + row * rounded_stride
        _store_pairs(out, a, b, index, query_pairs, HALF, INTERLEAVED)
        _store_pairs(out + 2 * query_pairs, key_a, key_b, key_index, key_pairs, HALF, INTERLEAVED)
        _store_pairs(out + 2 * (query_pairs + key_pairs), value_a, value_b, key_index, key_pairs, HALF, INTERLEAVED)


@triton.jit
def _load_pairs(source, head_stride, feature_stride, index, num_pairs, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    first, second = _pair(index, HALF, INTERLEAVED)
    source += (index // HALF) * head_stride
    a = tl.load(source + (first % (2 * HALF)) * feature_stride, mask=index < num_pairs, other=0.0)
    b = tl.load(source + (second % (2 * HALF)) * feature_stride, mask=index < num_pairs, other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _turned_back(a, b, cosine, sine, index, HALF: tl.constexpr):
    cos, sin = tl.load(cosine + index % HALF), tl.load(sine + index % HALF)
    return a * cos + b * sin, b * cos - a * sin


@triton.jit
def _store_pairs(out, a, b, index, num_pairs, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    first, second = _pair(index, HALF, INTERLEAVED)
    tl.store(out + first, a, mask=index < num_pairs)
    tl.store(out + second, b, mask=index < num_pairs)


@triton.jit
def _peak(a, b):
    return tl.maximum(tl.max(tl.abs(a.to(tl.float32))), tl.max(tl.abs(b.to(tl.float32))))


@triton.jit
def _in_fp8(values, scale):
    return (values.to(tl.float32) * (1.0 / scale)).to(tl.float8e4nv)
