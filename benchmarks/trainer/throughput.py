"""How fast, and in how much memory, the trainer trains a model of a known shape with random weights on real GPUs.

    python -m benchmarks.trainer.throughput --shape llama-3.1-8b --directory /tmp/throughput
    python -m benchmarks.trainer.throughput --directory /tmp/throughput --processes 2 --sharding full

It is the product that runs: `prepare` and `train` as a pod runs them. Printed are the median throughput of the steps
after the warm-up, the peak memory that the exporter tells, and what the planner had estimated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.trainer.shapes import SHAPES
from dev.hub.tiny_llama import write_model as write_tiny_model
from finetune_trainer.contract.series import GPU_MEMORY_PEAK_BYTES, METRICS_PATH, METRICS_PORT

WARM_UP_STEPS = 3
SAMPLES = Path("manifests/samples/data/function-calling-hermes.jsonl")


def main() -> int:
    """Prepare, train, and print one line of figures as JSON."""
    arguments = _parser().parse_args()
    shared = arguments.directory / "shared"
    model = shared / "models" / arguments.shape
    if not model.exists():
        write_random_model(model, SHAPES[arguments.shape])
    write_data(shared / "data" / "rows.jsonl", arguments)
    job_file = arguments.directory / "job.yaml"
    job_file.write_text(yaml.safe_dump(job(arguments)), encoding="utf-8")
    logs = arguments.directory / "network"
    peak = PeakMemory()
    started = time.monotonic()
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "finetune_trainer", verb, str(job_file)]
        command += ["--shared", str(shared), "--network", str(logs)]
        command += ["--termination-log", str(arguments.directory / f"{verb}.json")]
        subprocess.run(command, check=True, env=os.environ | {"FINETUNE_ATTEMPT": "1"})
    print(json.dumps(figures(arguments, logs, peak.bytes_seen, time.monotonic() - started)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--directory", type=Path, required=True, help="for the random model, its data and the run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sharding", default="auto")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--documents", choices=("long", "packed"), default="long")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--kernels", choices=("auto", "fused", "plain"), default="auto")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp8", "fp8-fast", "nf4"), default="auto")
    parser.add_argument("--embedding-on-host", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    return parser


def write_random_model(directory: Path, sizes: dict[str, Any]) -> None:
    """Write a checkpoint of random bf16 weights, a safetensors file a layer, with a small tokenizer."""
    directory.mkdir(parents=True)
    write_tiny_model(SAMPLES.read_text(encoding="utf-8").splitlines(), directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    config = AutoConfig.for_model(**sizes, dtype="bfloat16")
    config.save_pretrained(directory)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(config).state_dict()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
        filled = values.fill_(1.0) if weight.dim() == 1 else values.normal_(std=0.02)
        shard = ".".join(name.split(".")[:3]) if ".layers." in name else "rest"
        shards.setdefault(shard, {})[name] = filled.cpu()
    index = {}
    for number, (_, tensors) in enumerate(sorted(shards.items())):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")


def write_data(path: Path, arguments: argparse.Namespace) -> None:
    """Write enough rows for the run: the samples over and over, or documents that fill a sequence each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = SAMPLES.read_text(encoding="utf-8").splitlines()
    rows_needed = arguments.batch * arguments.processes * (arguments.steps + 1)
    if arguments.documents == "packed":
        path.write_text("\n".join(samples * (1 + rows_needed * arguments.length // 40_000)) + "\n", encoding="utf-8")
        return
    text = " ".join(json.loads(row)["conversations"][0]["value"] for row in samples)
    text = text.replace("<", " ").replace(">", " ")  # plain words, no tool calls
    rows = []
    for number in range(rows_needed):
        start = number * 997 % (len(text) // 2)
        answer = (text[start:] + text)[: arguments.length * 8]
        turns = [{"from": "human", "value": f"Recite {number}."}, {"from": "gpt", "value": answer}]
        rows.append(json.dumps({"conversations": turns}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the FineTuneJob of the run."""
    name = f"{arguments.shape}-{arguments.processes}-{arguments.sharding}-{time.time():.0f}".replace(".", "-")
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"path": f"models/{arguments.shape}"},
            "datasets": [{"path": "data/rows.jsonl", "format": "hermes"}],
            "lora": {"rank": arguments.rank, "alpha": 2 * arguments.rank, "dropout": arguments.dropout},
            "training": {
                "epochs": 1,
                "maxStepsPerEpoch": arguments.steps,
                "batchSize": arguments.batch,
                "gradientAccumulation": 1,
                "maxSequenceLength": arguments.length,
                "packing": arguments.documents == "packed",
                **({} if arguments.checkpointing is None else {"activationCheckpointing": arguments.checkpointing}),
                "kernels": arguments.kernels,
                "precision": arguments.precision,
                "embeddingOnHost": arguments.embedding_on_host,
                "optimizer": {"learningRate": arguments.learning_rate},
                "schedule": {"warmupSteps": 2},
                "logEverySteps": 1,
            },
            "checkpoint": {"everySteps": 1000},
            "compute": {"gpusPerNode": arguments.processes, "sharding": arguments.sharding},
        },
    }


class PeakMemory:
    """Asks the exporter of a run, once a second, for the peak memory of its GPUs."""

    def __init__(self) -> None:
        self.bytes_seen = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            try:
                url = f"http://127.0.0.1:{METRICS_PORT}{METRICS_PATH}"
                with urllib.request.urlopen(url, timeout=2) as response:
                    text = response.read().decode()
            except OSError:  # not started yet, or ended
                continue
            for family in text_string_to_metric_families(text):
                values = [sample.value for sample in family.samples if sample.name == GPU_MEMORY_PEAK_BYTES]
                self.bytes_seen = max(self.bytes_seen, *values, 0.0)


def figures(arguments: argparse.Namespace, logs: Path, peak_bytes: float, wall_seconds: float) -> dict[str, Any]:
    """Return what was measured, with what it was measured on."""
    newest = max(logs.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    steps = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()][WARM_UP_STEPS:]
    prepared = json.loads((arguments.directory / "prepare.json").read_text(encoding="utf-8"))["prepared"]
    return {
        **{name: str(value) for name, value in vars(arguments).items() if name != "directory"},
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "tokens_per_second_per_process": round(
            statistics.median(step["tokens_per_second"] for step in steps) / arguments.processes
        ),
        "steps_measured": len(steps),
        "sharding_resolved": prepared["sharding"],
        "kernels_resolved": prepared["kernels"],
        "losses": [round(step["loss"], 4) for step in steps[:: max(1, len(steps) // 20)]],
        "peak_gib": round(peak_bytes / 2**30, 1),
        "estimated_gib": round(prepared["estimatedMemoryBytes"] / 2**30, 1),
        "wall_seconds": round(wall_seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
