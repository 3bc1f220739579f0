"""How fast a training step goes, and in how much memory: the product's model, gradients and optimizer on one GPU.

    python -m benchmarks.trainer.step                                  # Llama 3.1 8B, rank 64, 2 x 4096 tokens, bf16
    python -m benchmarks.trainer.step --kernels plain --steps 8
    python -m benchmarks.trainer.step --list leagues                   # what is compared with other trainers
    python -m benchmarks.trainer.step --list planner                   # what the planner is fitted to

Weights and tokens are drawn on the GPU, every token is a target unless said, and each step ends in an update.
`throughput` measures the whole `train` with its files, its data and its checks; here a configuration takes seconds. A
line of JSON is printed for each: the median throughput of the steps after the warm-up, the memory at its peak and what
the planner had estimated, the power and the clock that the GPU held meanwhile.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.trainer.gpu_watch import GpuWatch
from benchmarks.trainer.shapes import SHAPES
from finetune_trainer.architecture import ModelShape, parse_config
from finetune_trainer.contract.spec import Kernels, Lora, LoraTarget, Sharding, TrainerSpec
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.data.packed import Sequence
from finetune_trainer.filling import Destination, fill_weights
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.repeated import RepeatedPasses
from finetune_trainer.kernels.fallback import told_fallbacks
from finetune_trainer.lora import adapter_parameters, add_adapters, initialise_adapters
from finetune_trainer.model import CausalDecoder, build_model
from finetune_trainer.passes import LaunchedPasses, Passes
from finetune_trainer.planner.launches import repeats_passes
from finetune_trainer.planner.memory import GIB, estimate_memory
from finetune_trainer.sharding import AdapterGradients, fill_model
from finetune_trainer.trainable import FROZEN_FORMATS

WARM_UP_STEPS = 3
GPU = torch.device("cuda", 0)
PRECISIONS = ("bf16", "fp8", "fp8-fast", "nf4")


@dataclass(frozen=True)
class Configuration:
    """What is measured."""

    shape: str = "llama-3.1-8b"
    batch: int = 2
    length: int = 4096
    rank: int = 64
    targets: str = "all"  # all, or qkv
    dropout: float = 0.0
    documents: str = "whole"  # one a row, or packed
    document_tokens: int = 250  # in the mean, of packed ones
    trained: float = 1.0  # the share of tokens that are targets
    kernels: str = "fused"
    checkpointing: bool = False
    precision: str = "bf16"
    embedding_on_host: bool = False
    repeats: bool = True  # by CUDA graphs, where the planner says so
    warm_up: int = WARM_UP_STEPS
    steps: int = 20

    @property
    def lora(self) -> Lora:
        """The adapter."""
        targets = tuple(LoraTarget)[: 3 if self.targets == "qkv" else None]
        return Lora(rank=self.rank, alpha=2 * self.rank, dropout=self.dropout, targets=targets)


TABLE = [
    Configuration(
        steps=6, shape=shape, batch=batch, length=length, rank=rank, kernels=kernels, checkpointing=recomputes
    )
    for shape, batch, length, rank, kernels, recomputes in (
        ("llama-3.1-8b", 1, 2048, 8, "fused", False),
        ("llama-3.1-8b", 2, 2048, 8, "fused", True),
        ("llama-3.1-8b", 1, 4096, 64, "fused", False),
        ("llama-3.1-8b", 2, 4096, 16, "fused", False),
        ("llama-3.1-8b", 3, 4096, 64, "fused", False),
        ("llama-3.1-8b", 4, 4096, 64, "fused", True),
        ("llama-3.1-8b", 1, 32768, 64, "fused", True),
        ("llama-3.1-8b", 2, 4096, 64, "plain", True),
        ("llama-3.1-8b", 1, 2048, 16, "plain", False),
        ("llama-3.2-3b", 2, 4096, 64, "fused", False),
        ("llama-3.2-3b", 4, 4096, 64, "fused", True),
        ("llama-3.2-1b", 2, 4096, 64, "fused", False),
        ("llama-3.2-1b", 8, 4096, 64, "fused", False),
        ("llama-3.2-1b", 4, 8192, 8, "fused", True),
        ("llama-3.2-1b", 2, 4096, 64, "plain", False),
        ("qwen-2.5-7b", 2, 4096, 64, "fused", False),
        ("qwen-2.5-7b", 2, 8192, 16, "fused", True),
        ("mistral-7b", 2, 4096, 64, "fused", False),
        ("mistral-7b", 1, 8192, 128, "fused", True),
        ("smollm2-135m", 8, 2048, 64, "fused", False),
        ("smollm2-135m", 8, 2048, 64, "plain", False),
        ("smollm2-135m", 16, 4096, 16, "fused", True),
    )
]


LEAGUES = [
    Configuration(),
    Configuration(dropout=0.1, steps=12),
    Configuration(batch=4, steps=12),
    Configuration(documents="packed", steps=12),
    Configuration(documents="packed", targets="qkv", rank=8, steps=12),
    Configuration(checkpointing=True, steps=8),
    Configuration(kernels="plain", checkpointing=True, steps=6),
    Configuration(kernels="plain", documents="packed", checkpointing=True, steps=6),
]


NARROW = [
    Configuration(),
    Configuration(precision="fp8"),
    Configuration(precision="fp8-fast"),
    Configuration(precision="fp8-fast", batch=4, steps=8),
    Configuration(precision="nf4", steps=10),
    Configuration(precision="nf4", rank=8, length=2048, checkpointing=True, embedding_on_host=True, steps=16),
    Configuration(precision="nf4", rank=8, length=2048, checkpointing=True, steps=8),
    Configuration(precision="fp8-fast", documents="packed", targets="qkv", rank=8, steps=12),
    Configuration(documents="packed", targets="qkv", rank=8, steps=12),
]

# What the planner is fitted to besides: narrow formats, and feed-forwards that are computed bit by bit.
NARROW_TABLE = [
    Configuration(
        warm_up=1,
        steps=2,
        shape=shape,
        batch=batch,
        length=length,
        rank=rank,
        precision=precision,
        checkpointing=recomputes,
    )
    for shape, batch, length, rank, precision, recomputes in (
        ("llama-3.1-8b", 4, 4096, 64, "bf16", True),
        ("llama-3.2-3b", 4, 4096, 64, "bf16", True),
        ("llama-3.2-1b", 4, 8192, 8, "bf16", True),
        ("llama-3.1-8b", 1, 4096, 16, "fp8-fast", False),
        ("llama-3.1-8b", 2, 8192, 64, "fp8-fast", True),
        ("llama-3.2-3b", 2, 4096, 64, "fp8-fast", False),
        ("qwen-2.5-7b", 2, 4096, 64, "fp8-fast", False),
        ("llama-3.1-8b", 1, 8192, 16, "nf4", True),
        ("llama-3.2-1b", 2, 4096, 16, "nf4", False),
        ("mistral-7b", 2, 4096, 64, "nf4", False),
        ("qwen-2.5-7b", 1, 4096, 64, "nf4", True),
        ("smollm2-135m", 8, 2048, 64, "bf16", False),
    )
]


LISTS = {"planner": TABLE, "leagues": LEAGUES, "narrow": NARROW, "narrow-planner": NARROW_TABLE}


def main() -> int:
    """Measure one configuration, or a list of them."""
    arguments = _parser().parse_args()
    given = {name: value for name, value in vars(arguments).items() if name in Configuration.__dataclass_fields__}
    configurations = LISTS[arguments.list] if arguments.list else [Configuration(**given)]
    for configuration in configurations:
        print(json.dumps(measure(configuration, arguments.profile)), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Configuration()
    parser.add_argument("--shape", choices=sorted(SHAPES), default=default.shape)
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--length", type=int, default=default.length)
    parser.add_argument("--rank", type=int, default=default.rank)
    parser.add_argument("--targets", choices=("all", "qkv"), default=default.targets)
    parser.add_argument("--dropout", type=float, default=default.dropout)
    parser.add_argument("--documents", choices=("whole", "packed"), default=default.documents)
    parser.add_argument("--document-tokens", type=int, default=default.document_tokens)
    parser.add_argument("--trained", type=float, default=default.trained)
    parser.add_argument("--kernels", choices=("fused", "plain"), default=default.kernels)
    parser.add_argument("--precision", choices=PRECISIONS, default=default.precision)
    parser.add_argument("--embedding-on-host", action="store_true")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=default.checkpointing)
    parser.add_argument("--repeats", action=argparse.BooleanOptionalAction, default=default.repeats)
    parser.add_argument("--warm-up", type=int, default=default.warm_up)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--list", choices=sorted(LISTS), help="measure a list of configurations instead")
    parser.add_argument("--profile", action="store_true", help="print where the time of one more step goes")
    return parser


def measure(configuration: Configuration, with_profile: bool = False) -> dict[str, Any]:
    """Train a few steps and return what was measured, with what it was measured on."""
    torch.manual_seed(0)
    shape = parse_config(SHAPES[configuration.shape])
    try:
        step = open_step(shape, configuration)
        torch.cuda.reset_peak_memory_stats()  # weights are drawn on the GPU, which a checkpoint's never are
        with GpuWatch() as watch:
            seconds, losses = run_steps(step, configuration, shape)
    except torch.cuda.OutOfMemoryError as error:
        return asdict(configuration) | {"error": str(error).partition(".")[0]}
    busy = print_profile(step, configuration, shape) / statistics.median(seconds) if with_profile else None
    peak = torch.cuda.max_memory_allocated()
    estimate = estimate_memory(shape, spec_of(configuration), Sharding.REPLICATE)
    return asdict(configuration) | {
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "tokens_per_second": round(configuration.batch * configuration.length / statistics.median(seconds)),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "peak_gib": round(peak / GIB, 2),
        "estimated_gib": round((estimate.total - estimate.overhead) / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        **({} if busy is None else {"gpu_busy_share": round(busy, 3)}),
        "repeats": isinstance(step.passes, RepeatedPasses),
        "fallbacks": list(told_fallbacks().values()),
        **watch.means(),
    }


def spec_of(configuration: Configuration) -> TrainerSpec:
    """Return the spec that asks for a configuration."""
    return TrainerSpec.model_validate(
        {
            "model": {"path": "model"},
            "datasets": [{"path": "rows.jsonl", "format": "hermes"}],
            "lora": configuration.lora.model_dump(),
            "training": {
                "batchSize": configuration.batch,
                "maxSequenceLength": configuration.length,
                "activationCheckpointing": configuration.checkpointing,
                "kernels": Kernels(configuration.kernels),
                "precision": configuration.precision,
                "embeddingOnHost": configuration.embedding_on_host,
            },
        }
    )


def build(shape: ModelShape, configuration: Configuration) -> CausalDecoder | FusedDecoder:
    """Build a model with random weights of the size that trained ones have."""
    recomputes, length = configuration.checkpointing, configuration.length
    model: CausalDecoder | FusedDecoder
    if configuration.kernels == "fused":
        frozen = FROZEN_FORMATS[configuration.precision](torch.bfloat16, GPU)
        model = FusedDecoder(
            shape,
            configuration.lora,
            torch.bfloat16,
            GPU,
            length,
            recomputes,
            frozen,
            embedding_on_host=configuration.embedding_on_host,
        )
        fill_weights(model.destinations(), random_weights(model.destinations()))
    else:
        model = build_model(shape, torch.bfloat16, length, recomputes)
        add_adapters(model, configuration.lora)
        fill_model(model, random_weights(dict(frozen_parameters(model))), GPU)
        model.fill_rotary_cache(GPU)
    initialise_adapters(model, 0)
    return model.train()


def frozen_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return the weights of the base model by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)


def random_weights(places: Mapping[str, Destination | torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Draw weights one by one: norms are one."""
    for name, place in places.items():
        weight = torch.empty(place.shape, dtype=torch.bfloat16, device=GPU)
        yield name, weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(std=0.02)


def open_step(shape: ModelShape, configuration: Configuration) -> "Step":
    """Build a model, and choose how its passes are launched, as the product does."""
    model, spec = build(shape, configuration), spec_of(configuration)
    memory_bytes = torch.cuda.get_device_properties(GPU).total_memory
    repeats = configuration.repeats and repeats_passes(shape, spec, Sharding.REPLICATE, memory_bytes)
    if repeats and isinstance(model, FusedDecoder):
        return Step(model, RepeatedPasses(model))
    return Step(model, LaunchedPasses(model))


class Step:
    """What the recipe does in a step, without its data and its reports."""

    def __init__(self, model: CausalDecoder | FusedDecoder, passes: Passes) -> None:
        self.model, self.passes = model, passes
        parameters = list(adapter_parameters(model).values())
        self.gradients = AdapterGradients(parameters)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def run(self, batch: Batch) -> torch.Tensor:
        """Do a step and return the mean loss, a scalar on the GPU."""
        self.gradients.zero()
        if isinstance(self.model, FusedDecoder):
            self.model.begin_step()
        loss = self.passes.add_gradients(batch, len(batch.targets))
        self.gradients.clip(1.0)
        self.optimizer.step()
        return loss


def run_steps(step: Step, configuration: Configuration, shape: ModelShape) -> tuple[list[float], list[float]]:
    """Return the seconds of each step after the warm-up, and the losses of all; nothing waits for the GPU before."""
    count = configuration.warm_up + configuration.steps
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    batches = [random_batch(configuration, shape.vocab_size, seed) for seed in range(count)]
    losses = []
    marks[0].record()
    for number, batch in enumerate(batches):
        losses.append(step.run(batch.to(GPU)))
        marks[number + 1].record()
    torch.cuda.synchronize()
    seconds = [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]
    return seconds[configuration.warm_up :], [loss.item() for loss in losses]


def random_batch(configuration: Configuration, vocabulary: int, seed: int) -> Batch:
    """Return rows of random tokens, so many of them targets as the configuration says."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(configuration.batch):
        lengths = np.array([configuration.length], np.int32)
        if configuration.documents == "packed":
            count = configuration.length // configuration.document_tokens
            ends = np.sort(random.choice(np.arange(1, configuration.length), count - 1, replace=False))
            lengths = np.diff(np.concatenate([[0], ends, [configuration.length]])).astype(np.int32)
        tokens = random.integers(0, vocabulary, configuration.length, dtype=np.int32)
        trained = np.ones(configuration.length, np.bool_)
        if configuration.trained < 1:
            trained = random.random(configuration.length) < configuration.trained
        rows.append(Sequence(tokens, trained, lengths))
    return make_batch(rows)


def print_profile(step: Step, configuration: Configuration, shape: ModelShape) -> float:
    """Print the kernels of one step, the longest first, and return the seconds that they take together."""
    batch = random_batch(configuration, shape.vocab_size, 99).to(GPU)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step.run(batch)
        torch.cuda.synchronize()
    averages = profile.key_averages()
    total = sum(row.self_device_time_total for row in averages)
    print(f"sum of kernel times: {total / 1000:.1f} ms, {sum(row.count for row in averages)} launches")
    for row in sorted(averages, key=lambda row: -row.self_device_time_total)[:40]:
        print(f"{row.self_device_time_total / 1000:8.2f} ms {row.count:5d} x {row.key[:110]}")
    return total / 1e6


if __name__ == "__main__":
    sys.exit(main())
