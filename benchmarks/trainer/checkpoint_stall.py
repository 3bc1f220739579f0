"""How long a training stands still for a checkpoint of its adapter and optimizer.

    python -m benchmarks.trainer.checkpoint_stall --directory /tmp/stall                             # 8B, one GPU
    taskset -c 0 python -m benchmarks.trainer.checkpoint_stall --shape smollm2-135m --rank 16 --device cpu --threads 1 \
        --step-seconds 8 --checkpoints 8 --mechanisms product --directory D     # a pod of the demo: one CPU, its steps

The adapter of the shape, AdamW on it, and the product's own checkpoints; in place of the model a number of matrix
products, one launch after the other, that take as long as a step is to take. The mechanisms are measured in turns:

    none        no checkpoint: what a step takes
    product     the copy is made during the next step, a thread writes
    in the loop the same files, written before the training goes on
    dcp         torch.distributed.checkpoint.async_save into page-locked memory (no digests, not in PEFT's layout)

Printed for each, in milliseconds: for how long the program stood still (`waited`), by how much the step that takes the
checkpoint is longer than a step without one (`stall`: median and worst), the same summed over all steps while it is
written (`lost`), and the time until it is complete. A step without one is the mean of the step before and of the one
after, so that a machine which becomes slower in the course of the measurement is not taken for a cost. `lost share` is
`lost` as a share of such a step, with the second least and the second greatest beside it: with eight checkpoints the
median lies between those with 93 % confidence. `cpu` is what the process computed more than in as many steps without a
checkpoint: on one processor that nobody else uses, it is what is lost. On a machine with other work only `waited` and
`cpu` mean anything.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from finetune_trainer.architecture import ModelShape, parse_config
from finetune_trainer.checkpoint.background import BackgroundCheckpoints
from finetune_trainer.checkpoint.content import Checkpoint, Progress, Tensors, create_moments, optimizer_tensors
from finetune_trainer.checkpoint.manifest import describe
from finetune_trainer.checkpoint.write import write_checkpoint
from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.contract.spec import Lora
from finetune_trainer.lora import TUNE_NAMES, to_peft

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
KEEP = 2
CALIBRATION_SECONDS = 1.0


class Training:
    """An adapter that is trained on nothing: products of matrices for the model, random gradients.

    Args:
        step_seconds: what a step is to take.
    """

    def __init__(self, shape: ModelShape, lora: Lora, device: torch.device, step_seconds: float) -> None:
        self.adapter = {
            name: torch.nn.Parameter(torch.randn(size, device=device) * 0.01)
            for name, size in adapter_sizes(shape, lora)
        }
        for parameter in self.adapter.values():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer = torch.optim.AdamW(self.adapter.values(), lr=2e-4, fused=True)
        create_moments(self.optimizer)
        self.moments = optimizer_tensors(self.optimizer, self.adapter)
        size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
        self._left = torch.randn(size // 2, size, dtype=dtype, device=device)
        self._right = torch.randn(size, size, dtype=dtype, device=device)
        self._device = device
        self._num_products = 10
        self._forward_and_backward()
        started, repeats = time.monotonic(), 0
        while time.monotonic() - started < CALIBRATION_SECONDS:
            self._forward_and_backward()
            repeats += 1
        self._num_products = max(1, round(10 * repeats * step_seconds / (time.monotonic() - started)))

    def step(self, before_change: Callable[[], None]) -> float:
        """Do a step, and return what it took, until the device has done its part."""
        started = time.monotonic()
        for _ in range(self._num_products):
            torch.mm(self._left, self._right)
        before_change()
        self.optimizer.step()
        self._wait_for_device()
        return time.monotonic() - started

    def _forward_and_backward(self) -> None:
        for _ in range(self._num_products):
            torch.mm(self._left, self._right)
        self._wait_for_device()

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def adapter_sizes(shape: ModelShape, lora: Lora) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(shape.num_layers):
        for target, (inputs, outputs) in shape.linears.items():
            yield f"layers.{layer}.{TUNE_NAMES[target]}.lora_a", (lora.rank, inputs)
            yield f"layers.{layer}.{TUNE_NAMES[target]}.lora_b", (outputs, lora.rank)


class Mechanism(ABC):
    """A way to write a checkpoint."""

    @abstractmethod
    def take(self, step: int) -> None:
        """Begin to write one."""

    @abstractmethod
    def before_change(self) -> None:
        """Called before adapter and optimizer change."""

    @abstractmethod
    def is_complete(self) -> bool:
        """Return whether it is written."""


class InTheLoop(Mechanism):
    """Copies and writes before the training goes on."""

    def __init__(self, training: Training, shape: ModelShape, directory: Path) -> None:
        self._training, self._shape, self._directory = training, shape, directory

    def take(self, step: int) -> None:
        self.write(
            {name: tensor.detach().cpu() for name, tensor in (self._training.adapter | self._training.moments).items()},
            Progress(step=step),
        )

    def write(self, copied: Tensors, progress: Progress) -> CheckpointReport:
        """Write as `finetune_trainer.state` does."""
        checkpoint = Checkpoint(
            progress=progress,
            settings={},
            adapter=to_peft({name: copied[name] for name in self._training.adapter}, self._shape, True),
            adapter_config={},
            optimizer={name: copied[name] for name in self._training.moments},
            time="2026-01-01T00:00:00Z",
        )
        return describe(write_checkpoint(self._directory, checkpoint, KEEP), self._directory)

    def before_change(self) -> None:
        """Everything was copied before."""

    def is_complete(self) -> bool:
        return True


class Product(Mechanism):
    """What the product does."""

    def __init__(self, training: Training, shape: ModelShape, directory: Path) -> None:
        self._num_written = self._num_taken = 0
        write = InTheLoop(training, shape, directory).write
        self._checkpoints = BackgroundCheckpoints(training.adapter | training.moments, write, self._count)

    def _count(self, _: object) -> None:
        self._num_written += 1

    def take(self, step: int) -> None:
        self._checkpoints.take(Progress(step=step))
        self._num_taken += 1

    def before_change(self) -> None:
        self._checkpoints.wait_before_change()

    def is_complete(self) -> bool:
        self._checkpoints.tell()
        return self._num_written == self._num_taken


class Dcp(Mechanism):
    """What torch.distributed.checkpoint does when it is asked to do it beside the training."""

    def __init__(self, training: Training, _: ModelShape, directory: Path) -> None:
        is_gpu = torch.cuda.is_available()
        self._tensors = dict(training.adapter) | training.moments
        self._directory = directory
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=is_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=is_gpu,
            )
        )
        self._under_way: Future[Any] | None = None

    def take(self, step: int) -> None:
        shutil.rmtree(self._directory / f"step-{step - 1}", ignore_errors=True)
        writer = dcp.FileSystemWriter(self._directory / f"step-{step}", sync_files=True)
        self._under_way = dcp.async_save(self._tensors, storage_writer=writer, async_stager=self._stager, no_dist=True)  # type: ignore[assignment]

    def before_change(self) -> None:
        """Everything was copied before."""

    def is_complete(self) -> bool:
        return self._under_way is None or self._under_way.done()


MECHANISMS: dict[str, type[InTheLoop] | type[Product] | type[Dcp]] = {
    "product": Product,
    "in the loop": InTheLoop,
    "dcp": Dcp,
}


def measure(training: Training, mechanism: Mechanism, num_checkpoints: int) -> dict[str, Any]:
    """Take some checkpoints, each between two steps without one, and return what they cost, in milliseconds."""
    stalls, losses, shares, durations, waits = [], [], [], [], []
    computed, cpu_of_steps = [], []
    waited = 0.0

    def before_change() -> None:
        nonlocal waited
        asked = time.monotonic()
        mechanism.before_change()
        waited += time.monotonic() - asked

    def quiet_step() -> tuple[float, float]:
        cpu = time.process_time()
        return training.step(before_change), time.process_time() - cpu

    # The first allocates what the others use again; it is told apart.
    before = quiet_step()
    for number in range(1, num_checkpoints + 2):
        started, cpu = time.monotonic(), time.process_time()
        mechanism.take(number)
        waited = taken = time.monotonic() - started
        steps = [taken + training.step(before_change)]
        waits.append(waited)
        while not mechanism.is_complete():
            steps.append(training.step(before_change))
        durations.append(time.monotonic() - started)
        cpu = time.process_time() - cpu
        after = quiet_step()
        quiet_seconds, quiet_cpu = (statistics.mean(pair) for pair in zip(before, after, strict=True))
        before = after
        computed.append(cpu - len(steps) * quiet_cpu)
        cpu_of_steps.append(quiet_cpu)
        stalls.append(steps[0] - quiet_seconds)
        losses.append(sum(steps) - len(steps) * quiet_seconds)
        shares.append(losses[-1] / quiet_seconds)

    def in_ms(seconds: float) -> int:
        return round(seconds * 1000)

    return {
        "first stall": in_ms(stalls[0]),
        "waited": in_ms(statistics.median(waits[1:])),
        "stall": in_ms(statistics.median(stalls[1:])),
        "worst stall": in_ms(max(stalls[1:])),
        "lost": in_ms(statistics.median(losses[1:])),
        "cpu": in_ms(statistics.median(computed[1:])),
        "cpu of a step": in_ms(statistics.median(cpu_of_steps[1:])),
        "lost share": round(statistics.median(shares[1:]), 4),
        "second least and greatest": [round(share, 4) for share in (sorted(shares[1:])[1], sorted(shares[1:])[-2])],
        "complete after": in_ms(statistics.median(durations[1:])),
    }


def main() -> int:
    arguments = _parser().parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    shape = parse_config(
        {"model_type": "llama", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5} | SHAPES[arguments.shape]
    )
    lora = Lora(rank=arguments.rank)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    training = Training(shape, lora, device, arguments.step_seconds)
    quiet = [training.step(lambda: None) for _ in range(arguments.quiet_steps)]
    machine = {
        **{name: str(value) for name, value in vars(arguments).items() if name != "directory"},
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else "none",
        "checkpoint_mb": round(12 * shape.num_adapter_parameters(lora) / 1e6),
        "step_ms": round(statistics.median(quiet) * 1000),
        "step_spread_ms": round((max(quiet) - min(quiet)) * 1000),
    }
    print(json.dumps(machine), flush=True)
    for name in arguments.mechanisms:
        make = MECHANISMS[name]
        arguments.directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            costs = measure(training, make(training, shape, Path(directory)), arguments.checkpoints)
        print(json.dumps({"mechanism": name} | costs), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--directory", type=Path, required=True, help="on the disk that is to hold the checkpoints")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--step-seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, help="of the matrix products, where the device is the CPU")
    parser.add_argument("--mechanisms", nargs="+", choices=sorted(MECHANISMS), default=list(MECHANISMS))
    parser.add_argument("--checkpoints", type=int, default=5, help="for each mechanism, three at least")
    parser.add_argument("--quiet-steps", type=int, default=10)
    return parser


if __name__ == "__main__":
    sys.exit(main())
