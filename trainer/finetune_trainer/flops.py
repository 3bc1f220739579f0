"""How much arithmetic a training needs, and how much of it a GPU could do: model FLOP utilisation.

Counted is what the mathematics of LoRA needs (Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311, with
frozen weights): two products for a frozen weight, three for a trained one, scores only between tokens that see each
other, logits only of trained tokens. What is computed again to save memory, and padding, count for nothing. The last
block counts for every token, as it does elsewhere, though most of it is computed for trained ones only.
"""

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora

# Dense bf16 FLOP/s by what the driver calls a GPU, from NVIDIA's data sheets. The first name that fits counts.
PEAK_FLOPS = (
    ("B300", 2250e12),
    ("B200", 2250e12),
    ("GH200", 989.4e12),
    ("H200 NVL", 835.5e12),
    ("H200", 989.4e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835.5e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("RTX 4090", 165.2e12),
)


def peak_flops(gpu_name: str) -> float | None:
    """Return what a GPU could do at most, in bf16 and whatever it computes in; None where that is not known."""
    return next((flops for name, flops in PEAK_FLOPS if name in gpu_name), None)


def training_flops(shape: ModelShape, lora: Lora, num_tokens: int, num_targets: int, num_pairs: int) -> float:
    """Return the operations that gradients of some sequences need, forward and backward.

    Args:
        shape: of the base model.
        lora: the adapter.
        num_tokens: of the sequences.
        num_targets: tokens among them that are predicted.
        num_pairs: of a token and one that it sees, itself included.
    """
    linears = shape.num_layers * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    a_token = 4 * linears + 6 * shape.num_adapter_parameters(lora)
    a_target = 4 * shape.vocab_size * shape.hidden_size
    a_pair = 12 * shape.num_layers * shape.num_heads * shape.head_dim
    return float(a_token * num_tokens + a_target * num_targets + a_pair * num_pairs)
