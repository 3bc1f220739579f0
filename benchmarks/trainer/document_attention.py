"""Attention inside packed documents: FlashAttention 2 beside our own kernel, by the mean length of documents.

    python -m benchmarks.trainer.document_attention              # 2 x 4096 tokens, 32 heads of 128, 8 of keys
    python -m benchmarks.trainer.document_attention --blocks     # how the kernels cut their work, too
    python -m benchmarks.trainer.document_attention --steps 10   # and whole steps, in turn

A line of JSON is printed for each measurement: milliseconds of a forward and of a backward pass, and how far the
results are from FlashAttention's.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.trainer.step import Configuration, measure
from finetune_trainer.data.batch import make_batch
from finetune_trainer.data.packed import Sequence
from finetune_trainer.fused import attention
from finetune_trainer.fused.attention import Documents, documents_of
from finetune_trainer.kernels.fallback import told_fallbacks
from finetune_trainer.kernels.on_gpu import attention as own
from finetune_trainer.kernels.on_gpu.attention import Blocks

GPU = torch.device("cuda", 0)
ROWS, LENGTH = 2, 4096
MEANS = (125, 250, 512, 1024, 2048)
REPEATS = 30
TRIED = {
    "FORWARD": [(128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (128, 128, 8, 2)],
    "OF_QUERIES": [(64, 64, 4, 2), (64, 64, 4, 1), (64, 32, 4, 3), (64, 32, 4, 2), (128, 64, 8, 2), (128, 32, 8, 2)],
    "OF_KEYS": [(32, 64, 4, 2), (32, 64, 4, 1), (32, 128, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2), (64, 128, 8, 1)],
}

STEPS = [
    Configuration(targets="qkv", rank=8),  # NVIDIA's set-up
    Configuration(targets="qkv", rank=8, precision="fp8-fast"),
    Configuration(),
    Configuration(document_tokens=1300, trained=0.18),  # chats: the Schema-Guided Dialogue data
    Configuration(shape="smollm2-135m", batch=8, length=2048),
]
FIGURES = (
    *("shape", "targets", "precision", "document_tokens", "trained", "tokens_per_second", "peak_gib", "power_watts"),
    *("clock_mhz", "first_loss", "last_loss", "fallbacks"),
)

Heads = tuple[Tensor, Tensor, Tensor]


def documents(mean: int) -> Documents:
    """Return documents whose ends are drawn at random."""
    random = np.random.default_rng(0)
    rows: list[Sequence | None] = []
    for _ in range(ROWS):
        ends = np.sort(random.choice(np.arange(1, LENGTH), LENGTH // mean - 1, replace=False))
        lengths = np.diff(np.concatenate([[0], ends, [LENGTH]])).astype(np.int32)
        rows.append(Sequence(np.zeros(LENGTH, np.int32), np.ones(LENGTH, np.bool_), lengths))
    with patch.object(attention, "SHORT_DOCUMENT_TOKENS", LENGTH):
        return documents_of(make_batch(rows), GPU)


def milliseconds(compute: Callable[[], object]) -> float:
    for _ in range(3):
        compute()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(REPEATS):
        compute()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / REPEATS


def error(ours: Tensor, expected: Tensor) -> float:
    return round(((ours.float() - expected.float()).norm() / expected.float().norm()).item(), 5)


def compare(heads: Heads, gradient: Tensor, mean: int) -> None:
    """Print both kernels' times."""
    given = documents(mean)
    flash = attention._attend_by_autograd(*heads, given)
    ours = attention.attend(*heads, given)
    assert ours.log_sums is not None, told_fallbacks()
    expected = torch.autograd.grad(flash.output, (flash.queries, flash.keys, flash.values), gradient, retain_graph=True)
    found = attention.attend_backward(ours, gradient)
    leaves = (flash.queries, flash.keys, flash.values)
    line = {
        "mean_length": mean,
        "longest": given.longest,
        "flash_forward": milliseconds(lambda: attention._attend_by_autograd(*heads, given)),
        "own_forward": milliseconds(lambda: attention.attend(*heads, given)),
        "flash_backward": milliseconds(lambda: torch.autograd.grad(flash.output, leaves, gradient, retain_graph=True)),
        "own_backward": milliseconds(lambda: attention.attend_backward(ours, gradient)),
        "errors": [error(ours.output, flash.output), *map(error, found, expected)],
        "fallbacks": told_fallbacks(),
    }
    print(json.dumps({name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}))
    sys.stdout.flush()


def try_blocks(heads: Heads, gradient: Tensor) -> dict[str, Blocks]:
    """Print the times of the kernels with their work cut otherwise, and return what is best where documents are short.

    A backward pass is both of its kernels.
    """
    best = {}
    for name, all_blocks in TRIED.items():
        took = {}
        for numbers in all_blocks:
            with patch.object(own, name, Blocks(*numbers)):
                took[numbers] = [blocks_milliseconds(name, heads, gradient, mean) for mean in (250, 1024)]
            print(
                json.dumps({"kernel": name, "blocks": numbers, "milliseconds_at_250_and_1024": took[numbers]}),
                flush=True,
            )
        best[name] = Blocks(*min(took, key=lambda numbers: took[numbers][0]))
    return best


def blocks_milliseconds(name: str, heads: Heads, gradient: Tensor, mean: int) -> float:
    given = documents(mean)
    ours = attention.attend(*heads, given)
    if name == "FORWARD":
        return round(milliseconds(lambda: attention.attend(*heads, given)), 4)
    return round(milliseconds(lambda: attention.attend_backward(ours, gradient)), 4)


def measure_steps(steps: int, rounds: int) -> None:
    """Print how fast steps of packed documents go, with FlashAttention 2 and with our own kernel, in turn."""
    for configuration in STEPS:
        for short in (0, LENGTH) * rounds:
            with patch.object(attention, "SHORT_DOCUMENT_TOKENS", short):
                result = measure(replace(configuration, documents="packed", steps=steps))
            told = {"own_kernel": bool(short)} | {name: result.get(name) for name in FIGURES}
            print(json.dumps(told), flush=True)
            gc.collect()
            torch.cuda.empty_cache()


def main() -> int:
    """Measure one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", action="store_true", help="try other blocks")
    parser.add_argument("--steps", type=int, default=0, help="measure whole steps as well")
    parser.add_argument("--rounds", type=int, default=2, help="of whole steps")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--heads", type=int, nargs=2, default=(32, 8), help="of queries and of keys")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    num_heads, num_kv_heads = arguments.heads
    shape = (ROWS * LENGTH, num_heads + 2 * num_kv_heads, arguments.head_dim)
    queries, keys, values = torch.randn(shape, device=GPU, dtype=torch.bfloat16).split(
        [num_heads, num_kv_heads, num_kv_heads], dim=1
    )
    gradient = torch.randn(ROWS * LENGTH, num_heads * arguments.head_dim, device=GPU, dtype=torch.bfloat16)
    for mean in MEANS:
        compare((queries, keys, values), gradient, mean)
    best = try_blocks((queries, keys, values), gradient) if arguments.blocks else {}
    with ExitStack() as stack:
        for name, blocks in best.items():
            stack.enter_context(patch.object(own, name, blocks))
        if arguments.steps:
            measure_steps(arguments.steps, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
