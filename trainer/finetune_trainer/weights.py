"""Whether the weight files of a model hold the model that its config.json describes.

Reads the headers only (https://huggingface.co/docs/safetensors/index#format), so that a model of any size is checked
in no time, and without torch.
"""

import json
import struct
from pathlib import Path
from typing import Any

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

# Names of weight files in the Hugging Face layout.
# NB: Mistral's repositories hold the same weights a second time as consolidated*.safetensors.
WEIGHT_FILE_PATTERNS = ("model.safetensors", "model-*-of-*.safetensors")
READABLE_TYPES = frozenset({"F32", "BF16", "F16"})
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library

TensorHeaders = dict[str, dict[str, Any]]


def check_weights(directory: Path, shape: ModelShape) -> None:
    """Check that every weight of a model is there, in its shape, unquantised and whole.

    Raises:
        TrainerError: MODEL_UNAVAILABLE for missing or damaged files, MODEL_UNSUPPORTED for weights of another model.
    """
    files = sorted(file for pattern in WEIGHT_FILE_PATTERNS for file in directory.glob(pattern))
    if not files:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE, f"{directory}: has no weight file {' or '.join(WEIGHT_FILE_PATTERNS)}"
        )
    found: TensorHeaders = {}
    for file in files:
        found |= _read_header(file)
    problems = []
    for name, expected in expected_weights(shape).items():
        header = found.get(name)
        if header is None:
            problems.append(f"{name} is missing")
        elif tuple(header["shape"]) != expected:
            problems.append(f"{name} is {header['shape']}, expected {list(expected)}")
        elif header["dtype"] not in READABLE_TYPES:
            problems.append(f"{name} is of type {header['dtype']}, expected one of {', '.join(sorted(READABLE_TYPES))}")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{directory}: the weights are not those that config.json describes: {'; '.join(problems[:3])}{more}",
        )


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


def _read_header(file: Path) -> TensorHeaders:
    try:
        with file.open("rb") as content:
            (num_bytes,) = struct.unpack("<Q", content.read(8))
            header: TensorHeaders = json.loads(content.read(min(num_bytes, MAX_HEADER_BYTES)))
    except (OSError, ValueError, struct.error) as error:
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{file}: cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    end = 8 + num_bytes + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if file.stat().st_size != end:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE,
            f"{file}: has {file.stat().st_size} bytes, but its header says {end}: copy it again",
        )
    return header
