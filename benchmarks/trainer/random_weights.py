"""Checkpoints of random weights, written as fast as a disk, or memory that serves as one, takes them.

Every layer has the same numbers, and they come again and again: what is timed does not depend on them, and 140 GB are
written in seconds.
"""

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dev.hub.tiny_llama import write_model as write_tiny_model

SAMPLES = Path("manifests/samples/data/function-calling-hermes.jsonl")
STANDARD_DEVIATION = 0.02
NUM_DRAWN = (1 << 26) + 4099  # so that no two rows of a matrix are equal
Headers = dict[str, dict[str, Any]]


def write_random_model(directory: Path, sizes: dict[str, Any], num_threads: int) -> None:
    """Write a checkpoint in bf16, a safetensors file a layer and one for the rest, with a small tokenizer."""
    partial = directory.with_name(f".{directory.name}.partial")
    partial.mkdir(parents=True)
    write_tiny_model(SAMPLES.read_text(encoding="utf-8").splitlines(), partial)
    for file in partial.glob("*.safetensors"):
        file.unlink()
    config = AutoConfig.for_model(**sizes, dtype="bfloat16")
    config.save_pretrained(partial)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    files: dict[str, list[str]] = {}
    for name in shapes:
        files.setdefault(".".join(name.split(".")[:3]) if ".layers." in name else "rest", []).append(name)
    numbers = draw(max(sum(shapes[name].numel() for name in names) for names in files.values()))
    index = {}
    with ThreadPoolExecutor(num_threads) as pool:
        writes = []
        for number, names in enumerate(files.values()):
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            writes.append(pool.submit(write_file, partial / file, {name: shapes[name] for name in names}, numbers))
            index |= dict.fromkeys(names, file)
        for write in writes:
            write.result()
    (partial / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    partial.rename(directory)


def draw(num_numbers: int) -> torch.Tensor:
    """Return random bf16 numbers, of which as many as the largest matrix of an 8B model has are independent."""
    drawn = (torch.randn(min(num_numbers, NUM_DRAWN)) * STANDARD_DEVIATION).bfloat16()
    return drawn.repeat(-(-num_numbers // len(drawn)))[:num_numbers]


def write_file(path: Path, shapes: dict[str, torch.Size], numbers: torch.Tensor) -> None:
    """Write a safetensors file (https://huggingface.co/docs/safetensors/index#format); norms are ones."""
    header: Headers = {}
    start, pieces = 0, []
    for name, shape in shapes.items():
        first, count = start // 2, shape.numel()
        piece = numbers[first : first + count] if len(shape) > 1 else torch.ones(count, dtype=torch.bfloat16)
        pieces.append(memoryview(piece.view(torch.uint8).numpy()))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, start + 2 * count]}
        start += 2 * count
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            written = 0
            while written < len(piece):
                written += os.write(descriptor, piece[written : written + (1 << 28)])
    finally:
        os.close(descriptor)
