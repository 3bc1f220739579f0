"""What fits a GPU's memory: how the base model is sharded, what is computed twice, and what a spec could change."""

from collections.abc import Callable

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Precision, Sharding, TrainerSpec
from finetune_trainer.planner.formats import resolve_precision
from finetune_trainer.planner.memory import GIB, MemoryEstimate, estimate_memory

# When nobody said how much memory a GPU has: that of the smallest ones that models are trained on (A10, L4).
ASSUMED_GPU_MEMORY_BYTES = 24 * GIB


def resolve_sharding(shape: ModelShape, spec: TrainerSpec, gpu_memory_bytes: int | None) -> Sharding:
    """Return the sharding with the least communication that fits, unless the spec says which."""
    compute = spec.compute
    if compute.sharding is not Sharding.AUTO:
        return compute.sharding
    if compute.device is Device.CPU or compute.world_size == 1:
        return Sharding.REPLICATE
    available = gpu_memory_bytes or ASSUMED_GPU_MEMORY_BYTES
    candidates = [Sharding.REPLICATE]
    if compute.nodes > 1 and compute.num_processes_per_node > 1:
        candidates.append(Sharding.HYBRID)
    fitting = (sharding for sharding in candidates if estimate_memory(shape, spec, sharding).total <= available)
    return next(fitting, Sharding.FULL)


def resolve_checkpointing(
    shape: ModelShape, spec: TrainerSpec, sharding: Sharding, memory_bytes: int | None
) -> bool | None:
    """Say whether activations are computed again: where they do not fit, unless the spec says.

    Args:
        shape: of the base model.
        spec: what was asked for.
        sharding: resolved.
        memory_bytes: of one GPU; None when it is not known.

    Returns:
        None when it cannot be decided without the memory. On CPUs, whose processes share theirs, activations are
        computed again.
    """
    if spec.training.activation_checkpointing is not None:
        return spec.training.activation_checkpointing
    if spec.compute.device is Device.CPU:
        return True
    if memory_bytes is None:
        return None
    return estimate_memory(shape, with_checkpointing(spec, False), sharding).total > memory_bytes


# --- what would fit ---------------------------------------------------------------------------------------------------


def tell_what_fits(shape: ModelShape, spec: TrainerSpec, memory: MemoryEstimate, gpu_memory_bytes: int) -> str:
    """Return why a training does not fit a GPU's memory, and with which changes it does."""
    changes = changes_that_fit(shape, spec, gpu_memory_bytes)
    advice = (
        "It fits with " + "; or with ".join(changes)
        if changes
        else "No change of the spec makes it fit: use larger GPUs"
    )
    return (
        f"the training needs about {memory.total / GIB:.1f} GiB on each GPU, which has "
        f"{gpu_memory_bytes / GIB:.1f} GiB (in GiB: {memory.describe()}). {advice}"
    )


def changes_that_fit(shape: ModelShape, spec: TrainerSpec, gpu_memory_bytes: int) -> list[str]:
    """Return changes of the spec, the least painful first, with each of which the training fits a GPU's memory."""

    def fits(changed: TrainerSpec) -> bool:
        sharding = resolve_sharding(shape, changed, gpu_memory_bytes)
        return estimate_memory(shape, changed, sharding).total <= gpu_memory_bytes

    automatic = _changed(spec, compute={"sharding": Sharding.AUTO})
    checkpointed = with_checkpointing(automatic, True)
    changes = []
    if spec.compute.sharding is not Sharding.AUTO and fits(automatic):
        changes.append("compute.sharding: auto")
    if spec.training.activation_checkpointing is False and fits(checkpointed):
        changes.append("training.activationCheckpointing: true")
    on_host = _changed(checkpointed, training={"embedding_on_host": True})
    if resolve_precision(spec) is Precision.NF4 and not fits(checkpointed) and fits(on_host):
        changes.append("training.embeddingOnHost: true")
    also = (
        ""
        if checkpointed == with_checkpointing(spec, spec.training.activation_checkpointing is not False)
        else " with activation checkpointing and sharding auto"
    )
    if found := _first_that_fits(_smaller_batches(checkpointed), fits):
        training = found.training
        changes.append(
            f"training.batchSize: {training.batch_size} and gradientAccumulation: "
            f"{training.gradient_accumulation}{also}"
        )
    smallest = _smaller_batches(checkpointed)[-1] if checkpointed.training.batch_size > 1 else checkpointed
    if found := _first_that_fits(_shorter_sequences(smallest), fits):
        changes.append(
            f"training.maxSequenceLength: {found.training.max_sequence_length} and batchSize: "
            f"{found.training.batch_size}{also}"
        )
    if found := _first_that_fits(_more_nodes(checkpointed), fits):
        changes.append(f"compute.nodes: {found.compute.nodes}{also}")
    return changes


def _first_that_fits(candidates: list[TrainerSpec], fits: Callable[[TrainerSpec], bool]) -> TrainerSpec | None:
    return next((candidate for candidate in candidates if fits(candidate)), None)


def _smaller_batches(spec: TrainerSpec) -> list[TrainerSpec]:
    """Halve the batch and double the accumulation while that is exact, so that the global batch stays."""
    candidates = []
    batch_size, accumulation = spec.training.batch_size, spec.training.gradient_accumulation
    while batch_size % 2 == 0:
        batch_size, accumulation = batch_size // 2, accumulation * 2
        candidates.append(_changed(spec, training={"batch_size": batch_size, "gradient_accumulation": accumulation}))
    return candidates or [spec]


def _shorter_sequences(spec: TrainerSpec) -> list[TrainerSpec]:
    lengths = [length for length in (16384, 8192, 4096, 2048, 1024, 512) if length < spec.training.max_sequence_length]
    return [_changed(spec, training={"max_sequence_length": length}) for length in lengths]


def _more_nodes(spec: TrainerSpec) -> list[TrainerSpec]:
    return [_changed(spec, compute={"nodes": spec.compute.nodes * factor}) for factor in (2, 4, 8, 16)]


def with_checkpointing(spec: TrainerSpec, recomputes: bool) -> TrainerSpec:
    """Return the spec with activations computed again, or kept."""
    return _changed(spec, training={"activation_checkpointing": recomputes})


def _changed(
    spec: TrainerSpec, training: dict[str, object] | None = None, compute: dict[str, object] | None = None
) -> TrainerSpec:
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(update=training or {}),
            "compute": spec.compute.model_copy(update=compute or {}),
        }
    )
