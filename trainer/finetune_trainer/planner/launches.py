"""Whether launching a step's kernels takes longer than computing them, so that a GPU should repeat them by itself."""

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Kernels, Precision, Sharding, TrainerSpec
from finetune_trainer.planner.formats import resolve_kernels, resolve_precision
from finetune_trainer.planner.memory import estimate_memory

# What the program needs to launch a layer's two passes: 88 ms for the 30 of SmolLM2-135M, beside an H100.
LAUNCH_SECONDS_A_LAYER = 0.003
# What an H100 makes of a small model's layers, which are much memory and little arithmetic: 16,384 tokens of
# SmolLM2-135M in 52 ms. A large model's are computed up to three times as fast.
FLOPS = 1.7e14
# Of the time on the GPU. Where launching takes less than this, the GPU waits for nothing: 97 % busy at 0.44.
WORTHWHILE_SHARE = 0.5


def repeats_passes(shape: ModelShape, spec: TrainerSpec, sharding: Sharding, gpu_memory_bytes: int) -> bool:
    """Say whether passes are kept as CUDA graphs, see `fused.repeated`.

    That takes batches of one length, which packing makes; weights that lie where they are; and memory for activations
    twice, as those of a graph are its own. NF4 keeps in mind which weight it has just expanded, and fp8 is for large
    models.

    Args:
        shape: of the base model.
        spec: what was asked for, with activation checkpointing resolved.
        sharding: resolved.
        gpu_memory_bytes: of one GPU.
    """
    training = spec.training
    can_be = (
        spec.compute.device is Device.GPU
        and resolve_kernels(spec) is Kernels.FUSED
        and resolve_precision(spec) is Precision.BF16
        and sharding is Sharding.REPLICATE
        and training.packing
    )
    if not can_be or not takes_longer_to_launch(shape, training.batch_size * training.max_sequence_length):
        return False
    memory = estimate_memory(shape, spec, sharding)
    return memory.total + memory.activations + memory.workspace <= gpu_memory_bytes


def takes_longer_to_launch(shape: ModelShape, num_tokens: int) -> bool:
    """Say whether launching a micro-batch's kernels takes a good part of the time that computing them does."""
    linears = shape.num_layers * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    operations = 4 * num_tokens * (linears + shape.vocab_size * shape.hidden_size)
    return LAUNCH_SECONDS_A_LAYER * shape.num_layers > WORTHWHILE_SHARE * operations / FLOPS
