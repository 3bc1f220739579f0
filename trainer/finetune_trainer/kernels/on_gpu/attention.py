"""Causal attention inside packed documents.

Queries, keys and values are [tokens, heads, head_dim], views of one buffer; `starts` and `ends`, int32 [tokens], say
where the document of each token begins, and where the next one does. A program owns a block of tokens of a head and
walks through the tokens that they see, or are seen by, so what is computed depends on the documents' lengths alone.

No two programs add to the same number: a gradient needs no copy in fp32, results are the same each time, and the
gradients of keys and values are summed in registers over the heads that share them. For that the scores are computed
three times in all, where FlashAttention 2 computes them twice.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.0 / math.log(2.0)


class Blocks(NamedTuple):
    """How a kernel cuts its work: tokens that ask, tokens that are asked, and how the compiler is to treat them."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int

    def settings(self) -> dict[str, int]:
        """Return them as a kernel is given them."""
        return {"QUERIES": self.queries, "KEYS": self.keys, "num_warps": self.num_warps, "num_stages": self.num_stages}


# The fastest of six each on an H100, for documents of 250 and of 1,024 tokens: `benchmarks.trainer.document_attention`.
FORWARD = Blocks(queries=64, keys=64, num_warps=4, num_stages=3)
OF_QUERIES = Blocks(queries=64, keys=64, num_warps=4, num_stages=2)
OF_KEYS = Blocks(queries=32, keys=64, num_warps=4, num_stages=1)


def attend_in_documents(queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention's output, [tokens, num_heads * head_dim], and the logarithms that its backward pass needs."""
    tokens, num_heads, head_dim = queries.shape
    output = queries.new_empty(tokens, num_heads * head_dim)
    log_sums = torch.empty(num_heads, tokens, dtype=torch.float32, device=queries.device)
    _forward[(triton.cdiv(tokens, FORWARD.queries), num_heads)](
        queries,
        keys,
        values,
        starts,
        output,
        log_sums,
        queries.stride(0),
        keys.stride(0),
        tokens,
        LOG2_E / math.sqrt(head_dim),
        GROUP=num_heads // keys.shape[1],
        SIZE=head_dim,
        **FORWARD.settings(),
    )
    return output, log_sums


def attend_in_documents_backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    ends: Tensor,
    output: Tensor,
    log_sums: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, each of its shape."""
    (tokens, num_heads, head_dim), num_kv_heads = queries.shape, keys.shape[1]
    by_queries, by_keys, by_values = (
        heads.new_empty(tokens, count, head_dim)
        for heads, count in ((queries, num_heads), (keys, num_kv_heads), (values, num_kv_heads))
    )
    along = torch.empty_like(log_sums)
    sizes = {"GROUP": num_heads // num_kv_heads, "SIZE": head_dim}
    _backward_of_queries[(triton.cdiv(tokens, OF_QUERIES.queries), num_heads)](
        queries,
        keys,
        values,
        starts,
        output,
        log_sums,
        gradient,
        by_queries,
        along,
        queries.stride(0),
        keys.stride(0),
        gradient.stride(0),
        tokens,
        1.0 / math.sqrt(head_dim),
        **sizes,
        **OF_QUERIES.settings(),
    )
    _backward_of_keys[(triton.cdiv(tokens, OF_KEYS.keys), num_kv_heads)](
        queries,
        keys,
        values,
        starts,
        ends,
        log_sums,
        gradient,
        along,
        by_keys,
        by_values,
        queries.stride(0),
        keys.stride(0),
        gradient.stride(0),
        tokens,
        1.0 / math.sqrt(head_dim),
        **sizes,
        **OF_KEYS.settings(),
    )
    return by_queries, by_keys, by_values


@triton.jit
def _forward(
    queries,
    keys,
    values,
    starts,
    output,
    log_sums,
    stride,
    kv_stride,
    num_tokens,
    scale,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    first, head = tl.program_id(0) * QUERIES, tl.program_id(1)
    rows, features = first + tl.arange(0, QUERIES), tl.arange(0, SIZE)
    inside = rows < num_tokens
    start = tl.load(starts + rows, mask=inside, other=0)
    own = rows.to(tl.int64)[:, None] * stride + head * SIZE + features[None, :]
    query = tl.load(queries + own, mask=inside[:, None], other=0.0)
    shared = (head // GROUP) * SIZE
    # Not minus infinity: a row may see nothing of the first keys, which are of another document.
    largest = tl.full((QUERIES,), -1e30, dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    result = tl.zeros((QUERIES, SIZE), dtype=tl.float32)
    for begin in range(tl.load(starts + first), tl.minimum(first + QUERIES, num_tokens), KEYS):
        columns = begin + tl.arange(0, KEYS)
        there, place = columns < num_tokens, columns.to(tl.int64) * kv_stride + shared
        key = tl.load(keys + place[None, :] + features[:, None], mask=there[None, :], other=0.0)
        score = tl.dot(query, key, input_precision="ieee") * scale
        seen = _sees(rows[:, None], columns[None, :], start[:, None])
        score = tl.where(seen, score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        shrink = tl.exp2(largest - larger)
        share = tl.exp2(score - larger[:, None])
        value = tl.load(values + place[:, None] + features[None, :], mask=there[:, None], other=0.0)
        total = total * shrink + tl.sum(share, 1)
        result = tl.dot(share.to(value.dtype), value, result * shrink[:, None], input_precision="ieee")
        largest = larger
    total = tl.where(inside, total, 1.0)
    place = rows.to(tl.int64)[:, None] * (tl.num_programs(1) * SIZE) + head * SIZE + features[None, :]
    tl.store(output + place, result / total[:, None], mask=inside[:, None])
    tl.store(log_sums + head.to(tl.int64) * num_tokens + rows, largest + tl.log2(total), mask=inside)


@triton.jit
def _backward_of_queries(
    queries,
    keys,
    values,
    starts,
    output,
    log_sums,
    gradient,
    by_queries,
    along,
    stride,
    kv_stride,
    gradient_stride,
    num_tokens,
    scale,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    first, head = tl.program_id(0) * QUERIES, tl.program_id(1)
    rows, features = first + tl.arange(0, QUERIES), tl.arange(0, SIZE)
    inside, wide_rows = rows < num_tokens, rows.to(tl.int64)
    start = tl.load(starts + rows, mask=inside, other=0)
    feature = head * SIZE + features[None, :]
    query = tl.load(queries + wide_rows[:, None] * stride + feature, mask=inside[:, None], other=0.0)
    incoming = tl.load(gradient + wide_rows[:, None] * gradient_stride + feature, mask=inside[:, None], other=0.0)
    place = wide_rows[:, None] * (tl.num_programs(1) * SIZE) + feature
    made = tl.load(output + place, mask=inside[:, None], other=0.0)
    # What a row's gradient has along its output: no share of the row can change that.
    common = tl.sum(incoming.to(tl.float32) * made.to(tl.float32), 1)
    of_row = head.to(tl.int64) * num_tokens + rows
    tl.store(along + of_row, common, mask=inside)
    log_sum = tl.load(log_sums + of_row, mask=inside, other=0.0)
    shared = (head // GROUP) * SIZE
    result = tl.zeros((QUERIES, SIZE), dtype=tl.float32)
    for begin in range(tl.load(starts + first), tl.minimum(first + QUERIES, num_tokens), KEYS):
        columns = begin + tl.arange(0, KEYS)
        there, place_kv = columns < num_tokens, columns.to(tl.int64) * kv_stride + shared
        key = tl.load(keys + place_kv[:, None] + features[None, :], mask=there[:, None], other=0.0)
        value = tl.load(values + place_kv[:, None] + features[None, :], mask=there[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        by_share = tl.dot(incoming, tl.trans(value), input_precision="ieee")
        seen = _sees(rows[:, None], columns[None, :], start[:, None])
        share = _share_again(score, scale, log_sum[:, None], seen)
        by_score = share * (by_share - common[:, None])
        result = tl.dot(by_score.to(key.dtype), key, result, input_precision="ieee")
    tl.store(by_queries + place, result * scale, mask=inside[:, None])


@triton.jit
def _backward_of_keys(
    queries,
    keys,
    values,
    starts,
    ends,
    log_sums,
    gradient,
    along,
    by_keys,
    by_values,
    stride,
    kv_stride,
    gradient_stride,
    num_tokens,
    scale,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    first, kv_head = tl.program_id(0) * KEYS, tl.program_id(1)
    columns, features = first + tl.arange(0, KEYS), tl.arange(0, SIZE)
    there, wide_columns = columns < num_tokens, columns.to(tl.int64)
    place = wide_columns[:, None] * kv_stride + kv_head * SIZE + features[None, :]
    key = tl.load(keys + place, mask=there[:, None], other=0.0)
    value = tl.load(values + place, mask=there[:, None], other=0.0)
    end = tl.load(ends + tl.minimum(first + KEYS, num_tokens) - 1)
    of_key = tl.zeros((KEYS, SIZE), dtype=tl.float32)
    of_value = tl.zeros((KEYS, SIZE), dtype=tl.float32)
    for head in range(kv_head * GROUP, kv_head * GROUP + GROUP):
        for begin in range(first, end, QUERIES):
            rows = begin + tl.arange(0, QUERIES)
            inside, wide_rows = rows < end, rows.to(tl.int64)
            feature = head * SIZE + features[None, :]
            query = tl.load(queries + wide_rows[:, None] * stride + feature, mask=inside[:, None], other=0.0)
            incoming = tl.load(
                gradient + wide_rows[:, None] * gradient_stride + feature, mask=inside[:, None], other=0.0
            )
            of_row = tl.full((), head, dtype=tl.int64) * num_tokens + rows
            log_sum = tl.load(log_sums + of_row, mask=inside, other=0.0)
            common = tl.load(along + of_row, mask=inside, other=0.0)
            start = tl.load(starts + rows, mask=inside, other=num_tokens)
            score = tl.dot(key, tl.trans(query), input_precision="ieee")
            by_share = tl.dot(value, tl.trans(incoming), input_precision="ieee")
            seen = _sees(rows[None, :], columns[:, None], start[None, :])
            share = _share_again(score, scale, log_sum[None, :], seen)
            of_value = tl.dot(share.to(incoming.dtype), incoming, of_value, input_precision="ieee")
            by_score = share * (by_share - common[None, :])
            of_key = tl.dot(by_score.to(query.dtype), query, of_key, input_precision="ieee")
    place = wide_columns[:, None] * (tl.num_programs(1) * SIZE) + kv_head * SIZE + features[None, :]
    tl.store(by_keys + place, of_key * scale, mask=there[:, None])
    tl.store(by_values + place, of_value, mask=there[:, None])


@triton.jit
def _sees(row, column, start):
    """Whether a token sees another: one of its own document that is not behind it."""
    return (column <= row) & (column >= start)


@triton.jit
def _share_again(score, scale, log_sum, seen):
    """Return the share that the forward pass gave a token; the factor is LOG2_E, which a kernel cannot read."""
    return tl.where(seen, tl.exp2(score * (scale * 1.4426950408889634) - log_sum), 0.0)
