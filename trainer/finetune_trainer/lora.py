"""The adapter: low-rank updates of frozen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The frozen weight W of a layer gets an update (alpha / rank) B A. B starts at zero, so training starts at the base
model. A and B are kept in fp32 also where W is bf16: at a learning rate of 2e-4 most updates are smaller than the
spacing of bf16 numbers and would be rounded away. Products run in the number format of the input.
"""

import hashlib
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora, LoraTarget

# Where torchtune's layers keep the linear layers that Hugging Face models name so.
TUNE_NAMES = {
    LoraTarget.Q_PROJ: "attn.q_proj",
    LoraTarget.K_PROJ: "attn.k_proj",
    LoraTarget.V_PROJ: "attn.v_proj",
    LoraTarget.O_PROJ: "attn.output_proj",
    LoraTarget.GATE_PROJ: "mlp.w1",
    LoraTarget.UP_PROJ: "mlp.w3",
    LoraTarget.DOWN_PROJ: "mlp.w2",
}
PEFT_NAMES = {
    target: f"{'self_attn' if name.startswith('attn.') else 'mlp'}.{target}" for target, name in TUNE_NAMES.items()
}

ROTATED = frozenset({LoraTarget.Q_PROJ, LoraTarget.K_PROJ})  # outputs that rotary positions turn


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank update.

    Takes over the layer's weight and bias, so their names stay. `lora_a` is fp32 [rank, inputs], `lora_b` fp32
    [outputs, rank].
    """

    def __init__(self, frozen: nn.Linear, rank: int, alpha: int, dropout: float) -> None:
        super().__init__()
        self.weight = frozen.weight
        self.bias = frozen.bias
        device = frozen.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, frozen.in_features, dtype=torch.float32, device=device))
        self.lora_b = nn.Parameter(torch.empty(frozen.out_features, rank, dtype=torch.float32, device=device))
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., inputs] to [..., outputs]."""
        frozen = functional.linear(x, self.weight, self.bias)
        low_rank = functional.linear(self.dropout(x), self.lora_a.to(x.dtype))
        # Scaling the narrow side costs rank multiplications a token instead of one for each output.
        return frozen + functional.linear(low_rank * self.scale, self.lora_b.to(x.dtype))


def add_adapters(model: nn.Module, lora: Lora) -> None:
    """Replace the target layers of each block of `model.layers` by LoRA layers; their values are not set yet."""
    for layer in model.get_submodule("layers").children():
        for target in lora.targets:
            owner_name, _, name = TUNE_NAMES[target].rpartition(".")
            owner = layer.get_submodule(owner_name)
            frozen = owner.get_submodule(name)
            assert isinstance(frozen, nn.Linear)
            setattr(owner, name, LoraLinear(frozen, lora.rank, lora.alpha, lora.dropout))


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, `layers.0.attn.q_proj.lora_a` and so on, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def initialise_adapters(model: nn.Module, seed: int) -> None:
    """Set A to random values and B to zero.

    Each A has a random stream of its own, named by seed and parameter, so a job starts from the same adapter on any
    number of processes, and nothing has to be sent. The distribution is that of PEFT and torchtune:
    kaiming-uniform with a = sqrt(5), that is +-1/sqrt(inputs).
    """
    for name, parameter in adapter_parameters(model).items():
        if name.endswith("lora_b"):
            parameter.zero_()
            continue
        stream = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big", signed=True)
        values = torch.empty(parameter.shape, dtype=torch.float32)
        bound = 1 / math.sqrt(parameter.shape[1])
        parameter.copy_(values.uniform_(-bound, bound, generator=torch.Generator().manual_seed(stream)))


def peft_config(lora: Lora, base_model: str, revision: str | None) -> dict[str, Any]:
    """Return the content of adapter_config.json (https://huggingface.co/docs/peft/developer_guides/checkpoint)."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def to_peft(adapter: dict[str, torch.Tensor], shape: ModelShape, interleaved_rotary: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of adapter_model.safetensors, under PEFT's names and in the row order of Hugging Face.

    Args:
        adapter: tensors by our names, as `adapter_parameters` returns them.
        shape: of the base model.
        interleaved_rotary: our q and k projections pair neighbouring features (`model.has_interleaved_rotary`).
    """
    weights = {}
    for name, value in adapter.items():
        layer, target, matrix = _parsed(name)
        is_permuted = interleaved_rotary and matrix == "lora_b" and target in ROTATED
        rows = _split_halves(value, shape.head_dim) if is_permuted else value
        weights[_peft_name(layer, target, matrix)] = rows.detach().cpu().contiguous()
    return weights


def from_peft(
    weights: dict[str, torch.Tensor], adapter: dict[str, nn.Parameter], shape: ModelShape, interleaved_rotary: bool
) -> dict[str, torch.Tensor]:
    """Return the tensors of adapter_model.safetensors under our names: the inverse of `to_peft`.

    Raises:
        KeyError: a tensor of `adapter` is not there.
    """
    tensors = {}
    for name in adapter:
        layer, target, matrix = _parsed(name)
        is_permuted = interleaved_rotary and matrix == "lora_b" and target in ROTATED
        rows = weights[_peft_name(layer, target, matrix)]
        tensors[name] = _interleave(rows, shape.head_dim) if is_permuted else rows
    return tensors


def _parsed(name: str) -> tuple[int, LoraTarget, str]:
    """Take `layers.<layer>.<linear>.<matrix>` apart."""
    _, layer, rest = name.split(".", 2)
    linear, _, matrix = rest.rpartition(".")
    target = next(target for target, tune_name in TUNE_NAMES.items() if tune_name == linear)
    return int(layer), target, matrix


def _peft_name(layer: int, target: LoraTarget, matrix: str) -> str:
    side = {"lora_a": "lora_A", "lora_b": "lora_B"}[matrix]
    return f"base_model.model.model.layers.{layer}.{PEFT_NAMES[target]}.{side}.weight"


def _split_halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Order the rows of each head from x0 y0 x1 y1 ... to x0 x1 ... y0 y1 ...; [num_heads * head_dim, rank]."""
    return rows.reshape(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _interleave(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Order the rows of each head from x0 x1 ... y0 y1 ... to x0 y0 x1 y1 ...; the inverse of `_split_halves`."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
