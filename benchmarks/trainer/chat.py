"""Trained tokens a second of real chats: packed by this trainer, and as torchtune's own recipe trains them by default.

    python -m benchmarks.trainer.chat --directory /tmp/chat --rows train.jsonl --tokenizer DIR/models/smollm2

The model has the 8B shape and random weights, and the tokenizer of another. Both see the same conversations, rendered
and cut by `prepare`. Ours is the product's `train` with its defaults, packed. Theirs is the installed torchtune's
`lora_finetune_single_device` with its configuration `llama3_1/8B_lora_single_device`: two conversations a batch,
padded, activations recomputed, nothing compiled, rank 8. Only model and data are changed in it.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trainer.chat_peer import PreparedChats
from benchmarks.trainer.random_weights import write_random_model
from benchmarks.trainer.shapes import SHAPES

WARM_UP_STEPS = 2
MODEL = "models/random"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
PEER_RECIPE = "lora_finetune_single_device.py"
PEER_CONFIG = "configs/llama3_1/8B_lora_single_device.yaml"
ACCUMULATION = 8  # torchtune's default
STEP_LINE = re.compile(r"tokens_per_second_per_gpu:([0-9.]+)")


def main() -> int:
    """Prepare, train with both, and print the figures as JSON."""
    arguments = _parser().parse_args()
    shared = arguments.directory / "shared"
    if not (shared / MODEL).exists():
        write_random_model(shared / MODEL, SHAPES[arguments.shape], num_threads=8)
    for name in TOKENIZER_FILES:
        shutil.copyfile(arguments.tokenizer / name, shared / MODEL / name)
    (shared / "data").mkdir(exist_ok=True)
    shutil.copyfile(arguments.rows, shared / "data" / "chats.jsonl")
    ours = train_here(arguments, shared)
    print(json.dumps({"ours": ours}), flush=True)
    theirs = train_there(arguments, shared)
    ratio = ours["trained tokens/s"] / theirs["trained tokens/s"]
    print(json.dumps({"ours": ours, "torchtune": theirs, "ratio": round(ratio, 2)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="for the random model, the data and the runs")
    parser.add_argument("--rows", type=Path, required=True, help="conversations, in the format openai")
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory of a model whose tokenizer is taken")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--chats", type=int, default=1500, help="conversations, at most")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    return parser


# --- ours -------------------------------------------------------------------------------------------------------------


def train_here(arguments: argparse.Namespace, shared: Path) -> dict[str, Any]:
    """Train with this project's defaults, and return what came out."""
    job_file, prepared_file = arguments.directory / "job.yaml", arguments.directory / "prepare.json"
    job_file.write_text(yaml.safe_dump(job(arguments)), encoding="utf-8")
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "finetune_trainer", verb, str(job_file), "--shared", str(shared)]
        command += ["--network", str(arguments.directory / "network")]
        command += ["--termination-log", str(arguments.directory / f"{verb}.json")]
        subprocess.run(command, check=True)
    prepared = json.loads(prepared_file.read_text(encoding="utf-8"))["prepared"]
    (metrics,) = (arguments.directory / "network").rglob("chat/**/metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()][WARM_UP_STEPS:]
    tokens_a_second = statistics.median(step["tokens_per_second"] for step in steps)
    return {
        "trained tokens/s": round(tokens_a_second * prepared["trainedTokens"] / prepared["tokens"]),
        "tokens/s": round(tokens_a_second),
        "steps measured": len(steps),
        "tokens": prepared["tokens"],
        "trained tokens": prepared["trainedTokens"],
        "chats": sum(dataset["rowsKept"] for dataset in prepared["datasets"]),
        "data": prepared["dataPath"],
    }


def job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the FineTuneJob: the defaults, but for torchtune's accumulation and a short run."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "chat"},
        "spec": {
            "model": {"path": MODEL},
            "datasets": [{"path": "data/chats.jsonl", "format": "openai", "maxSamples": arguments.chats}],
            "training": {
                "epochs": 1,
                "maxStepsPerEpoch": arguments.steps,
                "gradientAccumulation": ACCUMULATION,
                "logEverySteps": 1,
            },
            "checkpoint": {"everySteps": 1000},
            "evaluation": {"enabled": False},
            "compute": {"device": arguments.device},
        },
    }


# --- torchtune's ------------------------------------------------------------------------------------------------------


def train_there(arguments: argparse.Namespace, shared: Path) -> dict[str, Any]:
    """Run torchtune's recipe on the same conversations until it has done as many steps, and return its own figures."""
    found = importlib.util.find_spec("recipes")
    assert found is not None, "torchtune is not installed"
    assert found.submodule_search_locations is not None
    recipes = Path(found.submodule_search_locations[0])
    prepared = json.loads((arguments.directory / "prepare.json").read_text(encoding="utf-8"))["prepared"]
    output = arguments.directory / "torchtune"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    config = peer_config(arguments, recipes, shared / MODEL, shared / prepared["dataPath"], output)
    (output / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, str(recipes / PEER_RECIPE), "--config", str(output / "config.yaml")]
    with (output / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | _on_path())
        speeds: list[float] = []
        while process.poll() is None and len(speeds) < arguments.steps:
            time.sleep(0.5)
            speeds = read_speeds(output)
        process.kill()  # it would write out all of the model now
        process.wait()
    if len(speeds) < arguments.steps:
        raise SystemExit((output / "log").read_text(encoding="utf-8")[-3000:])
    measured = speeds[WARM_UP_STEPS : arguments.steps]
    chats = PreparedChats(None, str(shared / prepared["dataPath"]))
    return {
        "trained tokens/s": round(statistics.median(measured)),
        "steps measured": len(measured),
        "chats": len(chats),
    }


def _on_path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}


def read_speeds(output: Path) -> list[float]:
    """Return what the recipe has logged of each step: trained tokens a second."""
    return [float(found) for path in output.rglob("log_*.txt") for found in STEP_LINE.findall(path.read_text())]


def peer_config(arguments: argparse.Namespace, recipes: Path, model: Path, data: Path, output: Path) -> dict[str, Any]:
    """Return torchtune's own configuration, with our files in place of those it would download."""
    config: dict[str, Any] = yaml.safe_load((recipes / PEER_CONFIG).read_text(encoding="utf-8"))
    shape = SHAPES[arguments.shape]
    if arguments.shape != "llama-3.1-8b":  # to be rehearsed on a CPU
        config["model"] |= {
            "_component_": "torchtune.models.llama3.lora_llama3",
            "vocab_size": shape["vocab_size"],
            "num_layers": shape["num_hidden_layers"],
            "num_heads": shape["num_attention_heads"],
            "num_kv_heads": shape["num_key_value_heads"],
            "embed_dim": shape["hidden_size"],
            "max_seq_len": shape["max_position_embeddings"],
            "intermediate_dim": shape["intermediate_size"],
        }
    config["output_dir"] = str(output)
    config["tokenizer"] = {"_component_": "benchmarks.trainer.chat_peer.Padding"}
    config["dataset"] = {"_component_": "benchmarks.trainer.chat_peer.PreparedChats", "directory": str(data)}
    config["checkpointer"] |= {
        "checkpoint_dir": str(model),
        "checkpoint_files": sorted(path.name for path in model.glob("*.safetensors")),
    }
    if arguments.device == "cpu":
        config |= {"device": "cpu", "log_peak_memory_stats": False}
    return config


if __name__ == "__main__":
    sys.exit(main())
