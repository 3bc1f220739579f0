"""How fast the weights of a model come from its files into a GPU: as the trainer reads them, and memory-mapped.

python -m benchmarks.trainer.loading --directory D --shape llama-3.1-8b

Random weights are written to D where there are none. Both ways read the same files, which lie in the page cache, and
each weight is copied to a place of its own. Printed are seconds and GB a second, in the order they were measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.trainer.random_weights import write_random_model
from benchmarks.trainer.shapes import SHAPES
from finetune_trainer.architecture import read_shape
from finetune_trainer.model import read_weights

Weights = Iterator[tuple[str, torch.Tensor]]


def main() -> int:
    """Read the model twice in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--shape", default="llama-3.1-8b", choices=sorted(SHAPES))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda", 0))
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    directory = arguments.directory / arguments.shape
    if not directory.exists():
        write_random_model(directory, SHAPES[arguments.shape], num_threads=16)
    shape, device = read_shape(directory), arguments.device
    ways: dict[str, Callable[[], Weights]] = {
        "mapped": lambda: read_weights(directory, shape),
        "read ahead": lambda: read_weights(directory, shape, device),
    }
    for _ in range(2):
        for name, read in ways.items():
            seconds, num_bytes = measure(read(), device)
            print(
                json.dumps(
                    {"way": name, "seconds": round(seconds, 2), "gb_a_second": round(num_bytes / seconds / 1e9, 2)}
                )
            )
    return 0


def measure(weights: Weights, device: torch.device) -> tuple[float, int]:
    """Return how long it takes to have all weights in their places, and how many bytes they are."""
    started, num_bytes = time.monotonic(), 0
    place = torch.empty(0, dtype=torch.uint8, device=device)
    for _, weight in weights:
        if weight.nbytes > len(place):
            place = torch.empty(weight.nbytes, dtype=torch.uint8, device=device)
        place[: weight.nbytes].view(weight.dtype).view(weight.shape).copy_(weight)
        num_bytes += weight.nbytes
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - started, num_bytes


if __name__ == "__main__":
    sys.exit(main())
