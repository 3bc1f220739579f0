"""Which kernel makes a large product with the least energy, when an H100 runs at its power limit.

    python -m benchmarks.trainer.products                        # Llama 3.1 8B, rank 64, 2 x 4096 tokens, bf16

1. The whole step with cuBLAS and with cuBLASLt choosing, in turn.
2. Each large product of the step by all algorithms that cuBLASLt would think of, and by the first of them with other
   clusters and another order of blocks: all in short, the best for some time each, in turn with PyTorch's own choice.
   Power and clock are those of the second half of a measurement.
3. The whole step with PyTorch's choices and with the best ones, in turn.

A line of JSON is printed for each measurement.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.trainer.cublaslt import Algorithm, CublasLtError, Operand, Product, configuration
from benchmarks.trainer.gpu_watch import GpuWatch
from benchmarks.trainer.shapes import SHAPES
from benchmarks.trainer.step import GPU, Configuration, Step, open_step, run_steps
from finetune_trainer.architecture import parse_config
from finetune_trainer.fused import decoder
from finetune_trainer.fused.frozen.weight import Operand as LeftFactor
from finetune_trainer.fused.frozen.whole import WholeWeight
from finetune_trainer.kernels import kernels_for
from finetune_trainer.planner.memory import LOSS_CHUNK_TOKENS

TOKENS, HIDDEN, INNER, QKV, VOCABULARY, LAYERS = 8192, 4096, 14336, 6144, 128256, 32
SAMPLE_SECONDS = 0.01
MOST_FOUND, MOST_VARIED = 32, 4
FINALISTS = 6  # an even number
LEAST_GAIN = 1.003  # that a choice is made for


@dataclass(frozen=True)
class Case:
    """A product of the step: [m, k] by [k, n]."""

    name: str
    count: int  # in a step
    make: Callable[[], tuple[Tensor, Tensor, Tensor]]


def drawn(*shape: int, std: float) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=GPU).normal_(std=std)


def forward_factors(tokens: int, inputs: int, outputs: int, columns: int, apart: bool = False) -> tuple[Tensor, ...]:
    """Return x with t beside it, W with B beside it, and the output; without t and B where they are apart."""
    used = inputs if apart else inputs + columns
    weight = drawn(outputs + columns, inputs + columns, std=0.02)[:outputs, :used]
    return drawn(tokens, used, std=1.0), weight.T, drawn(tokens, outputs, std=1.0)


def backward_factors(tokens: int, inputs: int, outputs: int, columns: int) -> tuple[Tensor, ...]:
    """Return g with u beside it, W with A below it, and the gradient of x."""
    weight = drawn(outputs + columns, inputs + columns, std=0.02)[:, :inputs]
    return drawn(tokens, outputs + columns, std=1e-3), weight, drawn(tokens, inputs, std=1.0)


SIZES = {  # inputs, outputs, columns of adapters
    "gate_up": (HIDDEN, 2 * INNER, 128),
    "down": (INNER, HIDDEN, 64),
    "qkv": (HIDDEN, QKV, 192),
    "output": (HIDDEN, HIDDEN, 64),
}
CASES = [
    *(
        Case(f"{name} {way}", LAYERS - (name == "qkv" and way == "backward"), partial(make, TOKENS, *size, **more))
        for name, size in SIZES.items()
        for way, make, more in (
            ("forward", forward_factors, {"apart": True} if name == "output" else {}),
            ("backward", backward_factors, {}),
        )
    ),
    Case(
        "head forward", TOKENS // LOSS_CHUNK_TOKENS, partial(forward_factors, LOSS_CHUNK_TOKENS, HIDDEN, VOCABULARY, 0)
    ),
    Case(
        "head backward",
        TOKENS // LOSS_CHUNK_TOKENS,
        partial(backward_factors, LOSS_CHUNK_TOKENS, HIDDEN, VOCABULARY, 0),
    ),
]

Compute = Callable[[], object]
Layouts = tuple[Operand, Operand, Operand]
Choices = dict[Layouts, tuple[Product, Algorithm]]


def timed_in_turn(computes: Sequence[Compute], times: int) -> list[float]:
    """Return the seconds of each, the better of two passes, one of them backwards; the GPU never waits."""
    order = [*range(len(computes)), *reversed(range(len(computes)))]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(order) + 1)]
    marks[0].record()
    for mark, number in zip(marks[1:], order, strict=True):
        for _ in range(times):
            computes[number]()
        mark.record()
    torch.cuda.synchronize()
    seconds = [float("inf")] * len(computes)
    for number, before, after in zip(order, marks[:-1], marks[1:], strict=True):
        seconds[number] = min(seconds[number], before.elapsed_time(after) / 1000 / times)
    return seconds


@dataclass(frozen=True)
class Held:
    """What a product took when it was computed for some time."""

    seconds: float
    watts: float
    megahertz: float


def hold(compute: Compute, seconds_each: float, for_seconds: float) -> Held:
    times = max(1, round(for_seconds / seconds_each))
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with watching() as watch:
        first.record()
        for _ in range(times):
            compute()
        last.record()
        last.synchronize()
    means = watch.means()
    return Held(first.elapsed_time(last) / 1000 / times, means["power_watts"], means["clock_mhz"])


def watching() -> GpuWatch:
    """Return what reads power and clock of a measurement that takes less than a second."""
    return GpuWatch(SAMPLE_SECONDS, is_instant=True)


def search(case: Case, for_seconds: float, rounds: int, choices: Choices) -> None:
    """Look for the best algorithm of a product, and add it to the choices if it is better than PyTorch's."""
    left, right, result = case.make()
    product = Product.of(left, right, result)
    flops = 2.0 * left.shape[0] * left.shape[1] * right.shape[1]
    default: Compute = partial(torch.mm, left, right, out=result)
    algorithms = right_algorithms(product, left, right, result)
    computes = [partial(product.compute, left, right, result, algorithm) for algorithm in algorithms]
    seconds = timed_in_turn([default, *computes], 3)
    best = sorted(range(len(algorithms)), key=lambda number: seconds[number + 1])[:FINALISTS]
    in_short = [round(flops / seconds[number] / 1e12) for number in (0, *(number + 1 for number in best))]
    line = {"product": case.name, "right": len(algorithms), "default_and_best_tflops_in_short": in_short}
    print(json.dumps(line), flush=True)

    finalists = [Contestant(computes[number], seconds[number + 1]) for number in best]
    defaults = hold_in_turn(Contestant(default, seconds[0]), finalists, for_seconds, rounds)
    print(json.dumps(told(case.name, "PyTorch's choice", flops, defaults, 1.0)), flush=True)
    for number, finalist in zip(best, finalists, strict=True):
        line = told(case.name, f"candidate {number}", flops, finalist.held, finalist.gain)
        print(json.dumps(line | configuration(algorithms[number])), flush=True)
    winner = max(range(len(best)), key=lambda place: finalists[place].gain)
    if finalists[winner].gain >= LEAST_GAIN:
        choices[product.left, product.right, product.result] = (product, algorithms[best[winner]])


def right_algorithms(product: Product, left: Tensor, right: Tensor, result: Tensor) -> list[Algorithm]:
    """Return what computes the product rightly: what cuBLASLt would think of, then the first of them changed."""
    found = [each.algorithm for each in product.found(MOST_FOUND)]
    candidates = {bytes(algorithm): algorithm for algorithm in found}
    for algorithm in found[:MOST_VARIED]:
        candidates |= {bytes(varied): varied for varied in product.variants(algorithm)}
    expected = torch.mm(left, right, out=result).float()
    return [one for one in candidates.values() if is_right(product, left, right, result, one, expected)]


@dataclass
class Contestant:
    """A way to compute a product, and what it took when it was held against PyTorch's."""

    compute: Compute
    seconds: float  # in short
    held: list[Held] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """How much faster than PyTorch's choice next to it."""
        return statistics.mean(self.gains)


def hold_in_turn(default: Contestant, finalists: Sequence[Contestant], for_seconds: float, rounds: int) -> list[Held]:
    """Compute all for some time each, PyTorch's choice before and after every two; return what that took."""

    def held(contestant: Contestant) -> Held:
        contestant.held.append(hold(contestant.compute, contestant.seconds, for_seconds))
        return contestant.held[-1]

    hold(default.compute, default.seconds, for_seconds)
    for _ in range(rounds):
        before = held(default)
        for first, second in zip(finalists[::2], finalists[1::2], strict=True):
            first.gains.append(before.seconds / held(first).seconds)
            own = held(second)
            before = held(default)
            second.gains.append(before.seconds / own.seconds)
    return default.held


def is_right(
    product: Product, left: Tensor, right: Tensor, result: Tensor, algorithm: Algorithm, expected: Tensor
) -> bool:
    """Say whether an algorithm computes what PyTorch does, as far as bf16 goes."""
    result.zero_()
    try:
        product.compute(left, right, result, algorithm)
        torch.cuda.synchronize()
    except CublasLtError:
        return False
    error: Tensor = (result - expected).norm() / expected.norm()
    return error.item() < 0.005


def told(name: str, what: str, flops: float, held: Sequence[Held], gain: float) -> dict[str, object]:
    seconds = statistics.mean(each.seconds for each in held)
    watts = statistics.mean(each.watts for each in held)
    return {
        "product": name,
        "by": what,
        "tflops": round(flops / seconds / 1e12, 1),
        "gain": round(gain, 4),
        "milliseconds": round(seconds * 1000, 4),
        "millijoules": round(watts * seconds * 1000, 1),
        "watts": round(watts),
        "megahertz": round(statistics.mean(each.megahertz for each in held)),
    }


class ChosenProducts:
    """The step's products by the chosen algorithms; those that none was chosen for are PyTorch's."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.counts = {True: 0, False: 0}  # by a choice or not

    def multiply(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        result = left.new_empty(left.shape[0], right.shape[1]) if out is None else out
        chosen = self._choices.get((Operand.of(left), Operand.of(right), Operand.of(result)))
        self.counts[chosen is not None] += 1
        if chosen is None:
            return torch.mm(left, right, out=result)
        product, algorithm = chosen
        return product.compute(left, right, result, algorithm)

    def patches(self) -> list[object]:
        """Return what has the step compute by this, but for attention's output, which is added to its adapter's."""

        def forward(weight: WholeWeight, operand: LeftFactor, _: Tensor | None) -> Tensor:
            return self.multiply(operand.joined, weight.buffer()[: weight.size.outputs].T)

        def backward(weight: WholeWeight, operand: LeftFactor) -> Tensor:
            return self.multiply(operand.joined, weight.buffer()[:, : weight.size.inputs])

        return [
            patch.object(WholeWeight, "forward", forward),
            patch.object(WholeWeight, "backward", backward),
            patch.object(decoder, "loss_and_gradient", self._loss_and_gradient),
        ]

    def _loss_and_gradient(self, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total, gradient = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        for start in range(0, len(hidden), LOSS_CHUNK_TOKENS):
            chunk = slice(start, start + LOSS_CHUNK_TOKENS)
            logits = self.multiply(hidden[chunk], head.T)
            total += kernels_for(hidden.device).cross_entropy(logits, targets[chunk]).sum()
            self.multiply(logits, head, gradient[chunk])
        return total, gradient


def measure_step(name: str, step: Step, configuration_: Configuration, patches: Sequence[object]) -> None:
    """Print how fast the step goes."""
    shape = parse_config(SHAPES[configuration_.shape])
    with ExitStack() as stack:
        for change in patches:
            stack.enter_context(change)  # type: ignore[arg-type]
        with watching() as watch:
            seconds, losses = run_steps(step, configuration_, shape)
    line = {
        "step": name,
        "tokens_per_second": round(TOKENS / statistics.median(seconds)),
        **watch.means(),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
    print(json.dumps(line), flush=True)


def with_library(name: str, step: Step, configuration_: Configuration) -> None:
    torch.backends.cuda.preferred_blas_library(name)
    measure_step(f"preferred library {name}", step, configuration_, [])
    torch.backends.cuda.preferred_blas_library("default")


def main() -> int:
    """Measure one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.4, help="that a product is computed for at a time")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", help="products whose names hold this")
    arguments = parser.parse_args()
    configuration_ = Configuration(warm_up=2, steps=arguments.steps)
    step = open_step(parse_config(SHAPES[configuration_.shape]), configuration_)
    for name in ("default", "default", "cublaslt", "default", "cublaslt"):
        with_library(name, step, configuration_)
    choices: Choices = {}
    for case in CASES:
        if arguments.only is None or arguments.only in case.name:
            search(case, arguments.seconds, arguments.rounds, choices)
    for _ in range(3):
        measure_step("PyTorch's choices", step, configuration_, [])
        chosen = ChosenProducts(choices)
        measure_step(f"{len(choices)} chosen", step, configuration_, chosen.patches())
        print(json.dumps({"products by a choice": chosen.counts[True], "others": chosen.counts[False]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
