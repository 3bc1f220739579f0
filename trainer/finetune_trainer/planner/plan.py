"""What a spec comes to: the steps of a run, and how each is computed; or why it cannot be."""

from dataclasses import dataclass

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Kernels, Precision, Sharding, TrainerSpec
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.planner.fitting import (
    ASSUMED_GPU_MEMORY_BYTES,
    resolve_checkpointing,
    resolve_sharding,
    tell_what_fits,
    with_checkpointing,
)
from finetune_trainer.planner.formats import (
    FP8,
    NARROW,
    keeps_embedding_on_host,
    resolve_kernels,
    resolve_precision,
)
from finetune_trainer.planner.memory import GIB, MemoryEstimate, estimate_memory

FP8_SIZE_MULTIPLE = 16  # of what tensor cores multiply


@dataclass(frozen=True)
class Steps:
    """How long a run is."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


@dataclass(frozen=True)
class TrainingPlan:
    """What was resolved."""

    steps: Steps
    precision: Precision
    sharding: Sharding
    kernels: Kernels
    activation_checkpointing: bool | None  # None: the memory is not known yet, decide where it is
    memory: MemoryEstimate
    notes: tuple[str, ...]


def make_plan(shape: ModelShape, spec: TrainerSpec, num_sequences: int, gpu_memory_bytes: int | None) -> TrainingPlan:
    """Resolve what the spec leaves open, and check that it fits.

    Args:
        shape: of the base model.
        spec: what was asked for.
        num_sequences: packed sequences of one epoch.
        gpu_memory_bytes: memory of one GPU; None when it is not known, then the estimate is only reported.

    Raises:
        TrainerError: WILL_NOT_FIT, with changes of the spec that do fit.
    """
    check_what_cannot_be(shape, spec)
    steps = plan_steps(spec, num_sequences)
    sharding = resolve_sharding(shape, spec, gpu_memory_bytes)
    recomputes = resolve_checkpointing(shape, spec, sharding, gpu_memory_bytes)
    memory = estimate_memory(shape, with_checkpointing(spec, recomputes is not False), sharding)
    on_gpu = spec.compute.device is Device.GPU
    if on_gpu and gpu_memory_bytes is not None and memory.total > gpu_memory_bytes:
        raise TrainerError(Reason.WILL_NOT_FIT, tell_what_fits(shape, spec, memory, gpu_memory_bytes))
    return TrainingPlan(
        steps=steps,
        precision=resolve_precision(spec),
        sharding=sharding,
        kernels=resolve_kernels(spec),
        activation_checkpointing=recomputes,
        memory=memory,
        notes=tuple(
            _notes_on_steps(spec, steps)
            + _notes_on_sharding(spec, sharding, gpu_memory_bytes)
            + _notes_on_kernels(shape, spec)
        ),
    )


def plan_steps(spec: TrainerSpec, num_sequences: int) -> Steps:
    """Count steps. The last global batch of an epoch may be short; it is trained on all the same."""
    steps_per_epoch = min(spec.training.max_steps_per_epoch, -(-num_sequences // spec.global_batch))
    total_steps = steps_per_epoch * spec.training.epochs
    return Steps(steps_per_epoch, total_steps, min(spec.training.schedule.warmup_steps, total_steps // 2))


def check_what_cannot_be(shape: ModelShape, spec: TrainerSpec) -> None:
    """Refuse what no GPU could do.

    Raises:
        TrainerError: INVALID_SPEC, for all of it at once.
    """
    problems = []
    sizes = {target: min(shape.linears[target]) for target in spec.lora.targets}
    smallest = min(sizes, key=lambda target: sizes[target])
    if spec.lora.rank > sizes[smallest]:
        inputs, outputs = shape.linears[smallest]
        problems.append(
            f"lora.rank {spec.lora.rank} is larger than {smallest}, a layer of {inputs} x {outputs}: an adapter of "
            f"rank {sizes[smallest]} changes all of it; set lora.rank to at most that, or leave {smallest} out of "
            "lora.targets"
        )
    precision = resolve_precision(spec)
    if precision in NARROW:
        multiple = FP8_SIZE_MULTIPLE if precision in FP8 else 2
        odd = [f"{name} {sizes}" for name, sizes in shape.linears.items() if any(size % multiple for size in sizes)]
        if odd:
            problems.append(f"training.precision {precision} takes layers in multiples of {multiple}: {', '.join(odd)}")
    if problems:
        raise TrainerError(Reason.INVALID_SPEC, "; ".join(problems))


# --- what was asked for and is not so ---------------------------------------------------------------------------------


def _notes_on_steps(spec: TrainerSpec, steps: Steps) -> list[str]:
    notes = []
    asked, profile = spec.training.schedule.warmup_steps, spec.training.profile
    if steps.warmup_steps < asked:
        notes.append(f"warm-up is {steps.warmup_steps} steps, half of the run, instead of {asked}")
    if profile is not None and profile.first_step > steps.total_steps:
        notes.append(
            f"nothing is profiled: the run has {steps.total_steps} steps, training.profile.firstStep is "
            f"{profile.first_step}"
        )
    return notes


def _notes_on_sharding(spec: TrainerSpec, sharding: Sharding, gpu_memory_bytes: int | None) -> list[str]:
    compute = spec.compute
    is_chosen = compute.sharding is Sharding.AUTO and compute.device is Device.GPU and compute.world_size > 1
    if not is_chosen or gpu_memory_bytes is not None:
        return []
    return [f"sharding is {sharding}: the GPUs' memory is not known, {ASSUMED_GPU_MEMORY_BYTES // GIB} GiB assumed"]


def _notes_on_kernels(shape: ModelShape, spec: TrainerSpec) -> list[str]:
    notes = []
    if spec.training.embedding_on_host and not keeps_embedding_on_host(shape, spec):
        why = "the head is the same table" if shape.tied_embeddings else "that takes fused kernels"
        notes.append(f"the embeddings stay on the GPU: {why}")
    if spec.training.kernels is Kernels.FUSED and resolve_kernels(spec) is Kernels.PLAIN:
        notes.append(f"kernels are plain: fused ones take bf16 on a GPU, this is {resolve_precision(spec)}")
    return notes
