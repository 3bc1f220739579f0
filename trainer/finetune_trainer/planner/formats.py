"""In which numbers a base model is kept, and by which kernels it is computed."""

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Kernels, Precision, TrainerSpec

# A number of an activation, and of a weight where nothing else is said.
NUMBER_BYTES = {precision: 4 if precision is Precision.FP32 else 2 for precision in Precision}
# A number of a frozen linear layer: fp8 keeps it in bf16 and in fp8, or in two layouts of fp8 (the middle layers of
# fp8-fast), NF4 four bits and 16 for each 64 numbers.
LINEAR_BYTES = {
    Precision.BF16: 2,
    Precision.FP32: 4,
    Precision.FP8: 2 + 1,
    Precision.FP8_FAST: 1 + 1,
    Precision.NF4: 0.5 + 2 / 64,
}
FP8 = (Precision.FP8, Precision.FP8_FAST)
NARROW = (*FP8, Precision.NF4)


def num_exact_at_each_end(num_layers: int) -> int:
    """Return how many of the first layers, and of the last, are kept as in fp8 with fp8-fast: one of 30, none below 5.

    Their forward pass is exact. With one at each end 300 steps of SmolLM2 stay within 1 % of bf16's loss, see
    docs/LOG.md.
    """
    return (num_layers + 25) // 30


def resolve_precision(spec: TrainerSpec) -> Precision:
    """Return bf16 on a GPU and fp32 on a CPU, unless the spec says which."""
    if spec.training.precision is not Precision.AUTO:
        return spec.training.precision
    return Precision.BF16 if spec.compute.device is Device.GPU else Precision.FP32


def resolve_kernels(spec: TrainerSpec) -> Kernels:
    """Return which kernels compute a step: fused ones need bf16 on a GPU."""
    on_gpu, wanted, precision = spec.compute.device is Device.GPU, spec.training.kernels, resolve_precision(spec)
    if precision in NARROW:
        return Kernels.FUSED
    can_fuse = precision is Precision.BF16 or not on_gpu
    wants_fused = wanted is Kernels.FUSED or (wanted is Kernels.AUTO and on_gpu)
    return Kernels.FUSED if can_fuse and wants_fused else Kernels.PLAIN


def keeps_embedding_on_host(shape: ModelShape, spec: TrainerSpec) -> bool:
    """Say whether the table of embeddings is in the host's memory: where it was asked for and is not the head too."""
    is_fused = resolve_kernels(spec) is Kernels.FUSED
    return spec.training.embedding_on_host and is_fused and not shape.tied_embeddings
