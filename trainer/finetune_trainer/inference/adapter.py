"""A LoRA adapter in PEFT layout, as it lies on the disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import LoraTarget
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Settings of PEFT that change what an adapter computes, with the values under which they change nothing.
NEUTRAL_SETTINGS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
}


@dataclass(frozen=True)
class LowRank:
    """The update scale * B A of one linear layer: `a` is [rank, inputs], `b` [outputs, rank]."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates by the name of the weight that they belong to, `model.layers.0.self_attn.q_proj.weight`."""

    base_model: str | None
    rank: int
    updates: dict[str, LowRank]


def read_adapter(directory: Path, shape: ModelShape, base_model: str | None = None) -> Adapter:
    """Read an adapter and check that it belongs to a model.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        shape: of the base model.
        base_model: what the base model is called; an adapter that names another one is refused. None asks for nothing.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when a file is missing or damaged, MODEL_UNSUPPORTED for another base model, and
            for a kind of adapter that this trainer does not write.
    """
    config = _read_config(directory / ADAPTER_CONFIG)
    named = config.get("base_model_name_or_path")
    if base_model is not None and named and named != base_model:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{directory}: this adapter was trained on {named}, not on {base_model}: give it its own base model",
        )
    for setting, neutral in NEUTRAL_SETTINGS.items():
        if config.get(setting, neutral[0]) not in neutral:
            raise TrainerError(
                Reason.MODEL_UNSUPPORTED,
                f"{directory / ADAPTER_CONFIG}: {setting}: {config[setting]!r} is not supported",
            )
    path = directory / ADAPTER_WEIGHTS
    try:
        weights = load_file(path)
        rank, scale = int(config["r"]), float(config["lora_alpha"]) / int(config["r"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{path}: cannot be read as an adapter: {error}") from error
    return Adapter(named, rank, _updates(weights, scale, rank, shape, path))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE,
            f"{path}: cannot be read ({error}); an adapter is a directory with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}",
        ) from error
    if not isinstance(config, dict):
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{path}: is not a JSON object")
    return config


def _updates(
    weights: dict[str, torch.Tensor], scale: float, rank: int, shape: ModelShape, path: Path
) -> dict[str, LowRank]:
    updates = {}
    left = dict(weights)
    for layer in range(shape.num_layers):
        for target, (inputs, outputs) in shape.linears.items():
            module = f"model.layers.{layer}.{owner(target)}.{target}"
            prefix = f"base_model.model.{module}"
            a, b = left.pop(f"{prefix}.lora_A.weight", None), left.pop(f"{prefix}.lora_B.weight", None)
            if a is None and b is None:
                continue
            if a is None or b is None or a.shape != (rank, inputs) or b.shape != (outputs, rank):
                found = [None if matrix is None else list(matrix.shape) for matrix in (a, b)]
                raise TrainerError(
                    Reason.MODEL_UNSUPPORTED,
                    f"{path}: {module} has A and B of {found[0]} and {found[1]}, but the base model needs "
                    f"[{rank}, {inputs}] and [{outputs}, {rank}]: the adapter belongs to another base model",
                )
            updates[f"{module}.weight"] = LowRank(a, b, scale)
    if left or not updates:
        what = f"{next(iter(left))} belongs to no layer of the base model" if left else "holds no update"
        raise TrainerError(Reason.MODEL_UNSUPPORTED, f"{path}: {what}: the adapter belongs to another base model")
    return updates


def owner(target: LoraTarget) -> str:
    """Return which part of a block a linear layer belongs to, by the name that Hugging Face models give it."""
    return "self_attn" if target in _OF_ATTENTION else "mlp"


_OF_ATTENTION = frozenset({LoraTarget.Q_PROJ, LoraTarget.K_PROJ, LoraTarget.V_PROJ, LoraTarget.O_PROJ})
