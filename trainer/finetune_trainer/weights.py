"""Whether the weight files of a model hold the model that its config.json describes.

Reads the headers only (https://huggingface.co/docs/safetensors/index#format), so that a model of any size is checked
in no time, and without torch.
"""

import json
import re
import struct
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

# Names of weight files in the Hugging Face layout.
# NB: Mistral's repositories hold the same weights a second time as consolidated*.safetensors.
WHOLE_FILE, SHARDS = "model.safetensors", "model-*-of-*.safetensors"
# Tables that the first Llama and Mistral checkpoints hold for each layer; they follow from config.json.
_ROTARY_TABLE = re.compile(r"rotary_emb\.inv_freq$")
READABLE_TYPES = frozenset({"F32", "BF16", "F16"})
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library

TensorHeaders = dict[str, dict[str, Any]]


def check_weights(directory: Path, shape: ModelShape) -> None:
    """Check that every weight of a model is there, in its shape, unquantised and whole, and no other.

    Raises:
        TrainerError: MODEL_UNAVAILABLE for missing or damaged files, MODEL_UNSUPPORTED for weights of another model.
    """
    found: TensorHeaders = {}
    problems = []
    for file in find_weight_files(directory):
        _, header = read_header(file)
        problems += [f"{name} is in several files" for name in header if name in found]
        found |= header
    expected_shapes = expected_weights(shape)
    for name in found:
        if name not in expected_shapes and not is_passed_over(name, shape):
            problems.append(f"{name} belongs to no such model")
    for name, expected in expected_shapes.items():
        tensor = found.get(name)
        if tensor is None:
            problems.append(f"{name} is missing")
        elif tuple(tensor["shape"]) != expected:
            problems.append(f"{name} is {tensor['shape']}, expected {list(expected)}")
        elif tensor["dtype"] not in READABLE_TYPES:
            problems.append(f"{name} is of type {tensor['dtype']}, expected one of {', '.join(sorted(READABLE_TYPES))}")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{directory}: the weights are not those that config.json describes: {'; '.join(problems[:3])}{more}",
        )


def weight_file_names(names: Iterable[str]) -> list[str]:
    """Return which of a model's files hold its weights.

    Where there is a whole file and shards besides, transformers reads the whole file, and so does this trainer.
    """
    found = sorted(names)
    if WHOLE_FILE in found:
        return [WHOLE_FILE]
    return [name for name in found if fnmatch(name, SHARDS)]


def find_weight_files(directory: Path) -> list[Path]:
    """Return the files in a model's directory that hold its weights.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when there is none.
    """
    names = weight_file_names(file.name for file in directory.iterdir())
    if not names:
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{directory}: has no weight file {WHOLE_FILE} or {SHARDS}")
    return [directory / name for name in names]


def is_passed_over(name: str, shape: ModelShape) -> bool:
    """Say whether a tensor of a weight file is not read, as transformers does not read it either.

    That is a rotary table of an old checkpoint, or a head beside embeddings that serve as the head.
    """
    return bool(_ROTARY_TABLE.search(name)) or (name == "lm_head.weight" and shape.tied_embeddings)


def expected_weights(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the names that Hugging Face models give their weights, and their shapes [outputs, inputs]."""
    embedding = (shape.vocab_size, shape.hidden_size)
    weights: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": embedding}
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for target, (inputs, outputs) in shape.linears.items():
            is_attention = target in ("q_proj", "k_proj", "v_proj", "o_proj")
            name = f"{prefix}{'self_attn' if is_attention else 'mlp'}.{target}"
            weights[f"{name}.weight"] = (outputs, inputs)
            if shape.attention_bias and is_attention and target != "o_proj":
                weights[f"{name}.bias"] = (outputs,)
        weights[f"{prefix}input_layernorm.weight"] = (shape.hidden_size,)
        weights[f"{prefix}post_attention_layernorm.weight"] = (shape.hidden_size,)
    weights["model.norm.weight"] = (shape.hidden_size,)
    if not shape.tied_embeddings:
        weights["lm_head.weight"] = embedding
    return weights


def read_header(file: Path) -> tuple[int, TensorHeaders]:
    """Return where the data of a file begins, and what its header says of each tensor.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when it has no header, or another size than that says.
    """
    try:
        with file.open("rb") as content:
            (num_bytes,) = struct.unpack("<Q", content.read(8))
            header: TensorHeaders = json.loads(content.read(min(num_bytes, MAX_HEADER_BYTES)))
        header.pop("__metadata__", None)
        data_start = 8 + num_bytes
        end = data_start + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (OSError, ValueError, TypeError, KeyError, IndexError, struct.error) as error:
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{file}: cannot be read as safetensors: {error}") from error
    if file.stat().st_size != end:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE,
            f"{file}: has {file.stat().st_size} bytes, but its header says {end}: copy it again",
        )
    return data_start, header
