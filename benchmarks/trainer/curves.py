"""Whether a precision learns as bf16 does: the same training of a real model on real conversations in each of them.

    python -m benchmarks.trainer.curves --directory D --model models/smollm2 --data data/rows.jsonl --format openai

Model and data lie under D/shared. It is the product that runs: `prepare` and `train` as a pod runs them, from the same
adapter, over the same sequences, all precisions at once. A line of JSON is printed for each: its losses, and how far
they are from those of the first one, as a share: of the worst step, of the worst mean of ten, and of the last fifty.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

WINDOW, LAST = 10, 50


def main() -> int:
    """Train in each precision and compare."""
    arguments = _parser().parse_args()
    precisions = arguments.precisions.split(",")
    with ThreadPoolExecutor(len(precisions)) as pool:
        curves = list(pool.map(partial(train, arguments), precisions))
    for precision, losses in zip(precisions, curves, strict=True):
        result = {"precision": precision, "steps": len(losses), **compare(losses, curves[0])}
        print(json.dumps(result | {"losses": [round(loss, 4) for loss in means(losses)]}), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="its folder `shared` holds model and data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--format", default="openai")
    parser.add_argument("--precisions", default="bf16,fp8,fp8-fast,nf4")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser


def train(arguments: argparse.Namespace, precision: str) -> list[float]:
    """Run the product, and return the loss of each step."""
    directory: Path = arguments.directory
    job_file, logs = directory / f"{precision}.yaml", directory / f"network-{precision}"
    environment = os.environ | {"FINETUNE_ATTEMPT": "1", "FINETUNE_METRICS_PORT": "0"}
    job_file.write_text(yaml.safe_dump(job(arguments, precision)), encoding="utf-8")
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "finetune_trainer", verb, str(job_file)]
        command += ["--shared", str(directory / "shared"), "--network", str(logs)]
        command += ["--termination-log", str(directory / f"{precision}-{verb}.json")]
        with (directory / f"{precision}-{verb}.log").open("w") as log:
            subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    newest = max(logs.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    return [json.loads(line)["loss"] for line in newest.read_text(encoding="utf-8").splitlines()]


def job(arguments: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Return the FineTuneJob of a run."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": f"curve-{precision}-{time.time():.0f}"},
        "spec": {
            "model": {"path": arguments.model},
            "datasets": [{"path": arguments.data, "format": arguments.format}],
            "lora": {"rank": arguments.rank, "alpha": 2 * arguments.rank, "dropout": 0.0},
            "training": {
                "epochs": 1,
                "maxStepsPerEpoch": arguments.steps,
                "batchSize": arguments.batch,
                "gradientAccumulation": 1,
                "maxSequenceLength": arguments.length,
                "precision": precision,
                "kernels": arguments.kernels,
                "optimizer": {"learningRate": arguments.learning_rate},
                "schedule": {"warmupSteps": 20},
            },
            "checkpoint": {"everySteps": 10_000},
            "compute": {"device": arguments.device},
        },
    }


def means(losses: list[float]) -> list[float]:
    """Return the means of ten losses each."""
    windows = [losses[start : start + WINDOW] for start in range(0, len(losses), WINDOW)]
    return [sum(window) / len(window) for window in windows]


def compare(losses: list[float], reference: list[float]) -> dict[str, float]:
    """Return how far losses are from the reference's."""

    def worst(ours: list[float], expected: list[float]) -> float:
        return round(max(abs(one / other - 1) for one, other in zip(ours, expected, strict=True)), 5)

    return {
        "worst_step": worst(losses, reference),
        "worst_mean_of_ten": worst(means(losses), means(reference)),
        "last_fifty": round(sum(losses[-LAST:]) / sum(reference[-LAST:]) - 1, 5),
    }


if __name__ == "__main__":
    sys.exit(main())
