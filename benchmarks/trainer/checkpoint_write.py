"""How long a checkpoint takes to be written and read back, and to be found and read by a run that goes on from it.

    python -m benchmarks.trainer.checkpoint_write --directory /tmp/checkpoints        # 8B at rank 64: 2.0 GB
    PYTHONPATH=OTHER/trainer:. python -m ...                                          # the same of another version

Printed in seconds, least and median of some turns: `write` until a checkpoint has its final name; `resume`, of which
`find` is what rank 0 does first and `read` what every process does then. `forgotten` says that the kernel was told to
forget the files before they were looked for, as on another node.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from finetune_trainer.checkpoint.content import Checkpoint, Progress
from finetune_trainer.checkpoint.manifest import forget_cached
from finetune_trainer.checkpoint.read import find_usable, read_checkpoint
from finetune_trainer.checkpoint.write import write_checkpoint

NUM_TENSORS = 448  # of an 8B model's adapter: 32 layers, 7 linears, 2 matrices


def make_checkpoint(step: int, num_parameters: int) -> Checkpoint:
    size = num_parameters // NUM_TENSORS
    adapter = {f"layer.{number}": torch.randn(size) for number in range(NUM_TENSORS)}
    moments = {f"{name}.{moment}": torch.randn(size) for name in adapter for moment in ("exp_avg", "exp_avg_sq")}
    return Checkpoint(Progress(step=step), {}, adapter, {}, moments, "2026-01-01T00:00:00Z")


def seconds_of(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="on the disk that is to hold the checkpoints")
    parser.add_argument(
        "--parameters", type=int, default=167_772_160, help="of the adapter; 12 bytes are written of each"
    )
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, list[float]] = {"write": [], "find": [], "read": []}
    checkpoint = make_checkpoint(1, arguments.parameters)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        for _ in range(arguments.turns):
            seconds["write"].append(seconds_of(lambda: write_checkpoint(Path(name), checkpoint, keep=1)))
            forget_cached(Path(name) / "step-1")
            seconds["find"].append(seconds_of(lambda: find_usable(Path(name), {})))
            seconds["read"].append(seconds_of(lambda: read_checkpoint(Path(name) / "step-1", {})))
    figures = {what: [round(min(all_), 2), round(statistics.median(all_), 2)] for what, all_ in seconds.items()}
    size = round(12 * arguments.parameters / 1e6)
    print(json.dumps({"mb": size, "processors": len(os.sched_getaffinity(0)), "forgotten": True} | figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
