"""How long a training takes from its command to the end of its first step, as every restart pays it.

    python -m benchmarks.trainer.first_step --directory /tmp/chat

An 8B model of random weights lies in safetensors on a local disk (`benchmarks.trainer.chat` leaves one there). Three
runs: one that fills the caches of compilers; one whose files have left the page cache, so that the disk is read; one
whose files are in it, so that everything but the disk is left. Dropping the page cache takes root.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trainer.random_weights import write_random_model
from benchmarks.trainer.shapes import SHAPES

MODEL = "models/random"
NUM_STEPS = 3
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
SAMPLES = Path("manifests/samples/data/function-calling-hermes.jsonl")
NUM_READERS = 8
READ_BYTES = 16 << 20


def main() -> int:
    """Prepare once, train three times, and print the figures as JSON."""
    arguments = _parser().parse_args()
    shared = arguments.directory / "shared"
    if not (shared / MODEL).exists():
        write_random_model(shared / MODEL, SHAPES[arguments.shape], num_threads=NUM_READERS)
    (shared / "data").mkdir(exist_ok=True)
    (shared / "data" / "samples.jsonl").write_text(SAMPLES.read_text(encoding="utf-8") * 20, encoding="utf-8")
    figures: dict[str, Any] = {}
    for name in ("cold compiler", "from disk", "from page cache"):
        if name == "from disk":
            drop_page_cache()
            figures["disk alone, s"] = round(read_all(shared / MODEL), 1)
            drop_page_cache()
        figures[name] = run(arguments, shared, name.replace(" ", "-"))
        print(json.dumps({name: figures[name]}), flush=True)
    print(json.dumps(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    return parser


def run(arguments: argparse.Namespace, shared: Path, name: str) -> dict[str, Any]:
    """Prepare and train a job of three steps, and return when what was done, in seconds after the command of train."""
    job_file = arguments.directory / f"{name}.yaml"
    job_file.write_text(yaml.safe_dump(job(name, arguments.device)), encoding="utf-8")
    network = arguments.directory / "network"
    options = ["--shared", str(shared), "--network", str(network)]
    subprocess.run(_command("prepare", job_file, options), check=True, stdout=subprocess.DEVNULL)
    if name == "from-disk":
        drop_page_cache()
    started, wall = time.monotonic(), time.time()
    process = subprocess.Popen(_command("train", job_file, options), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [(round(time.monotonic() - started, 1), line.strip()[:100]) for line in process.stdout]
    if process.wait() != 0:
        raise SystemExit("\n".join(line for _, line in lines))
    (metrics,) = network.rglob(f"{name}/**/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {
        "first step done, s": round(steps[0]["timestamp_seconds"] - wall, 1),
        "first step itself, s": round(steps[0]["seconds"], 1),
        "later steps, s": round(statistics.median(step["seconds"] for step in steps[1:]), 2),
        "lines": lines[:3],
    }


def _command(verb: str, job_file: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "finetune_trainer", verb, str(job_file), *options]


def job(name: str, device: str) -> dict[str, Any]:
    """Return a FineTuneJob of three short steps with the defaults."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"path": MODEL},
            "datasets": [{"path": "data/samples.jsonl", "format": "hermes"}],
            "training": {"epochs": 1, "maxStepsPerEpoch": NUM_STEPS, "gradientAccumulation": 1, "logEverySteps": 1},
            "checkpoint": {"everySteps": 1000},
            "evaluation": {"enabled": False},
            "compute": {"device": device},
        },
    }


def drop_page_cache() -> None:
    """Let the kernel forget the files that it has read, so that they are read from the disk again."""
    os.sync()
    DROP_CACHES.write_text("3", encoding="ascii")


def read_all(directory: Path) -> float:
    """Read all files of a directory once, and return the seconds that it took."""

    def read(path: Path) -> None:
        buffer = bytearray(READ_BYTES)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    started = time.monotonic()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        list(pool.map(read, sorted(directory.iterdir())))
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
