"""The shape of a model, read from the config.json that lies beside its weights.

Knows no torch, so that `prepare` and the operator can plan with it. What is read here decides which model `train`
builds, so everything that this trainer would compute differently from the model's authors is refused.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

CONFIG_FILE = "config.json"
SUPPORTED = "Llama 3, 3.1 and 3.2 (text), SmolLM2 and other models of type llama; Qwen 2.5 (qwen2); Mistral (mistral)"


class Family(StrEnum):
    """A family of architectures, by the `model_type` of its config.json."""

    LLAMA = "llama"
    QWEN2 = "qwen2"
    MISTRAL = "mistral"


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary positions (rope type `llama3`).

    Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py (apply_scaling)
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class ModelShape:
    """Everything about a decoder that decides its parameters and its arithmetic."""

    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_epsilon: float
    tied_embeddings: bool
    attention_bias: bool  # biases on q, k and v; never on the output projection

    @property
    def linears(self) -> dict[LoraTarget, tuple[int, int]]:
        """The linear layers of one block: (input features, output features)."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            LoraTarget.Q_PROJ: (self.hidden_size, query),
            LoraTarget.K_PROJ: (self.hidden_size, key_value),
            LoraTarget.V_PROJ: (self.hidden_size, key_value),
            LoraTarget.O_PROJ: (query, self.hidden_size),
            LoraTarget.GATE_PROJ: (self.hidden_size, self.intermediate_size),
            LoraTarget.UP_PROJ: (self.hidden_size, self.intermediate_size),
            LoraTarget.DOWN_PROJ: (self.intermediate_size, self.hidden_size),
        }

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one block: linears, biases of q, k and v, two norms."""
        weights = sum(inputs * outputs for inputs, outputs in self.linears.values())
        biases = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim if self.attention_bias else 0
        return weights + biases + 2 * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return embeddings + self.num_layers * self.num_layer_parameters + self.hidden_size

    def num_adapter_parameters(self, lora: Lora) -> int:
        """Parameters of a LoRA adapter: for each target a matrix A [rank, inputs] and a matrix B [outputs, rank]."""
        return self.num_layers * sum(lora.rank * sum(self.linears[target]) for target in lora.targets)


def read_shape(model_directory: Path) -> ModelShape:
    """Read the shape of the model in a directory of the Hugging Face layout.

    Raises:
        TrainerError: MODEL_UNAVAILABLE when there is no readable config.json, MODEL_UNSUPPORTED when the model is
            none that this trainer computes exactly as its authors do.
    """
    path = model_directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE,
            f"{path}: cannot be read ({error.strerror}); a model directory holds config.json, tokenizer.json and "
            "*.safetensors files",
        ) from error
    except ValueError as error:
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{path}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise TrainerError(Reason.MODEL_UNAVAILABLE, f"{path}: is not a JSON object")
    try:
        return parse_config(config)
    except TrainerError as error:
        raise TrainerError(error.reason, f"{path}: {error.message}") from error


def parse_config(config: dict[str, Any]) -> ModelShape:
    """Make a shape of a parsed config.json.

    Raises:
        TrainerError: MODEL_UNSUPPORTED, naming the field that is not supported and the models that are.
    """
    family = _family(config)
    _refuse_what_we_would_compute_differently(config)
    num_heads = _positive(config, "num_attention_heads")
    hidden_size = _positive(config, "hidden_size")
    rope_theta, rope_scaling = _rope(config)
    return ModelShape(
        family=family,
        vocab_size=_positive(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=_positive(config, "num_hidden_layers"),
        num_heads=num_heads,
        # A config of the first Llama does not have this field: each head has its own keys and values.
        num_kv_heads=_positive(config, "num_key_value_heads", default=num_heads if family is Family.LLAMA else None),
        head_dim=_positive(config, "head_dim", default=hidden_size // num_heads),
        intermediate_size=_positive(config, "intermediate_size"),
        max_positions=_max_positions(config, family),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=family is Family.QWEN2,
    )


def _unsupported(what: str) -> TrainerError:
    return TrainerError(Reason.MODEL_UNSUPPORTED, f"{what}. Supported are: {SUPPORTED}")


def _family(config: dict[str, Any]) -> Family:
    model_type = config.get("model_type")
    if model_type not in set(Family):
        raise _unsupported(f"model_type {model_type!r} is not supported")
    architectures = config.get("architectures") or []
    if architectures and not any(str(name).endswith("ForCausalLM") for name in architectures):
        raise _unsupported(f"architectures {architectures} has no language model head (...ForCausalLM)")
    return Family(model_type)


def _refuse_what_we_would_compute_differently(config: dict[str, Any]) -> None:
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise _unsupported(f"the weights are quantised (quantization_config, {method}): use the bf16 checkpoint")
    if config.get("hidden_act", "silu") != "silu":
        raise _unsupported(f"hidden_act {config['hidden_act']!r} is not supported, only silu")
    # Qwen 2.5 has biases on q, k and v by design and no field for them; the others have none unless these say so.
    for field in ("attention_bias", "mlp_bias"):
        if config.get(field):
            raise _unsupported(f"{field} is not supported")


def _rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    # transformers 5 writes one group `rope_parameters`; transformers 4 wrote `rope_theta` and `rope_scaling`, whose
    # kind was `type` before it was `rope_type`.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise _unsupported("partial_rotary_factor is not supported")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise _unsupported(f"rope type {kind!r} is not supported, only default and llama3")
    try:
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_frequency_factor=float(rope["low_freq_factor"]),
            high_frequency_factor=float(rope["high_freq_factor"]),
            original_max_positions=int(rope["original_max_position_embeddings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unsupported(f"rope type llama3 lacks a number: {error}") from error
    return theta, scaling


def _max_positions(config: dict[str, Any], family: Family) -> int:
    max_positions = _positive(config, "max_position_embeddings")
    # A window of n tokens changes nothing in a sequence of at most n tokens, and longer ones are not trained here.
    # NB: a Mistral config without the field means a window of 4096
    # (https://github.com/huggingface/transformers/blob/main/src/transformers/models/mistral/configuration_mistral.py);
    # Qwen 2.5 states a window that is off.
    window = config.get("sliding_window", 4096 if family is Family.MISTRAL else None)
    if window is None or not config.get("use_sliding_window", family is Family.MISTRAL):
        return max_positions
    return min(max_positions, int(window))


def _positive(config: dict[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default
    if not isinstance(value, int) or value < 1:
        raise _unsupported(f"{field} is {value!r}; expected a positive whole number")
    return value
