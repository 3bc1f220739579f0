"""What to change when a GPU's memory ran out: what the planner says fits, and nothing that is so already."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Sharding, TrainerSpec
from finetune_trainer.planner.memory import estimate_memory

# The planner was wrong, or somebody else uses the GPU too: what it thinks of a change has to be this much below what it
# thinks of the run that failed.
MARGIN = 0.9
SEQUENCE_LENGTHS = (32768, 16384, 8192, 4096, 2048, 1024, 512)


@dataclass(frozen=True)
class Choice:
    """A way to train, and what to write into the manifest to get there."""

    spec: TrainerSpec  # with activation checkpointing resolved
    sharding: Sharding
    changes: tuple[str, ...] = ()


def advise(shape: ModelShape, spec: TrainerSpec, sharding: Sharding, recomputes: bool, gpu_memory_bytes: int) -> str:
    """Return a sentence that says with which changes the planner expects a run to fit that has just not fitted.

    Args:
        shape: of the base model.
        spec: what was asked for.
        sharding: resolved.
        recomputes: activation checkpointing, resolved.
        gpu_memory_bytes: memory of one GPU.
    """
    failed = _with_checkpointing(Choice(spec, sharding), recomputes)
    budget = min(gpu_memory_bytes, MARGIN * estimate_memory(shape, failed.spec, sharding).total)

    def first_fit(choices: Iterator[Choice]) -> list[str]:
        fitting = (choice for choice in choices if estimate_memory(shape, choice.spec, choice.sharding).total <= budget)
        return [" and ".join(choice.changes) for choice in fitting][:1]

    kinds = (_checkpointed, _more_sharded, _smaller_batches, _shorter_sequences)
    advice = [change for kind in kinds for change in first_fit(kind(failed))] or first_fit(_everything(failed))
    if not advice:
        return "No change of the spec makes it fit, says the planner: use GPUs with more memory, or more of them"
    return f"The planner says that it fits with {'; or with '.join(advice)}"


def _checkpointed(choice: Choice) -> Iterator[Choice]:
    if not choice.spec.training.activation_checkpointing:
        yield _with_checkpointing(choice, True, "training.activationCheckpointing: true")


def _more_sharded(choice: Choice) -> Iterator[Choice]:
    compute = choice.spec.compute
    if choice.sharding is Sharding.REPLICATE and compute.nodes > 1 and compute.num_processes_per_node > 1:
        yield _changed(choice, Sharding.HYBRID, "compute.sharding: hybrid")
    if choice.sharding is not Sharding.FULL and compute.world_size > 1:
        yield _changed(choice, Sharding.FULL, "compute.sharding: full")


def _smaller_batches(choice: Choice) -> Iterator[Choice]:
    """Halve the batch while that is exact; the global batch stays."""
    batch_size, accumulation = choice.spec.training.batch_size, choice.spec.training.gradient_accumulation
    while batch_size % 2 == 0:
        batch_size, accumulation = batch_size // 2, accumulation * 2
        words = f"training.batchSize: {batch_size} and training.gradientAccumulation: {accumulation}"
        yield _changed(choice, choice.sharding, words, batch_size=batch_size, gradient_accumulation=accumulation)


def _shorter_sequences(choice: Choice) -> Iterator[Choice]:
    for length in SEQUENCE_LENGTHS:
        if length < choice.spec.training.max_sequence_length:
            words = f"training.maxSequenceLength: {length}"
            yield _changed(choice, choice.sharding, words, max_sequence_length=length)


def _everything(choice: Choice) -> Iterator[Choice]:
    """Change all at once: as much as is possible of each kind, and then the lengths one by one."""
    for kind in (_checkpointed, _more_sharded, _smaller_batches):
        *_, choice = choice, *kind(choice)  # the last one goes furthest
    yield choice
    yield from _shorter_sequences(choice)


def _with_checkpointing(choice: Choice, recomputes: bool, *words: str) -> Choice:
    return _changed(choice, choice.sharding, *words, activation_checkpointing=recomputes)


def _changed(choice: Choice, sharding: Sharding, *words: str, **training: object) -> Choice:
    changed = choice.spec.training.model_copy(update=training)
    return Choice(choice.spec.model_copy(update={"training": changed}), sharding, (*choice.changes, *words))
