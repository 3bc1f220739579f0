"""What a run would take before anything is held: steps, tokens, memory of a GPU, time and money.

Pure. Steps, sharding and memory are the trainer's own arithmetic (`finetune_trainer.planner`), so that what is said
here is what prepare will say. Time is an estimate from one measured share of a GPU's peak, and says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_cli.gpus import MEASURED_SHARE_FUSED, MEASURED_SHARE_PLAIN, Gpu, flops_per_token
from finetune_operator.api.job import FineTuneJob
from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Kernels
from finetune_trainer.contract.termination import PreparedReport
from finetune_trainer.errors import TrainerError
from finetune_trainer.planner.fitting import resolve_checkpointing, resolve_sharding
from finetune_trainer.planner.formats import resolve_kernels, resolve_precision
from finetune_trainer.planner.memory import MemoryEstimate, estimate_memory
from finetune_trainer.planner.plan import make_plan, plan_steps


@dataclass(frozen=True)
class Data:
    """How much there is to train on."""

    sequences: int
    """Packed sequences of an epoch."""
    tokens: int
    """Tokens of an epoch."""
    exact: bool
    """False: there can be no more than this, and packing mostly leaves far fewer."""
    basis: str
    """Where the numbers come from."""


@dataclass(frozen=True)
class Forecast:
    """What a run would take. What could not be known is None, and `notes` say why."""

    world_size: int
    global_batch: int
    data: Data
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    total_tokens: int
    precision: str
    parameters: int | None = None
    adapter_parameters: int | None = None
    sharding: str | None = None
    kernels: str | None = None
    recomputes: bool | None = None
    memory: MemoryEstimate | None = None
    gpu: Gpu | None = None
    will_not_fit: str | None = None
    """What would have to change for a GPU's memory to suffice."""
    tokens_per_second: float | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return all of it as data, in the manner of the API's fields."""
        gpu = None if self.gpu is None else {"name": self.gpu.name, "memoryBytes": self.gpu.memory_bytes}
        return {
            "worldSize": self.world_size,
            "globalBatch": self.global_batch,
            "sequences": self.data.sequences,
            "tokens": self.data.tokens,
            "exact": self.data.exact,
            "basis": self.data.basis,
            "stepsPerEpoch": self.steps_per_epoch,
            "totalSteps": self.total_steps,
            "warmupSteps": self.warmup_steps,
            "totalTokens": self.total_tokens,
            "parameters": self.parameters,
            "trainableParameters": self.adapter_parameters,
            "precision": self.precision,
            "sharding": self.sharding,
            "kernels": self.kernels,
            "activationCheckpointing": self.recomputes,
            "estimatedMemoryBytes": None if self.memory is None else self.memory.total,
            "gpu": gpu,
            "willNotFit": self.will_not_fit,
            "tokensPerSecond": self.tokens_per_second,
            "seconds": self.seconds,
            "gpuHours": self.gpu_hours,
            "cost": self.cost,
            "notes": list(self.notes),
        }


def measured_data(report: PreparedReport, name: str) -> Data:
    """Return the data of a job that was prepared from the same data sets with the same settings."""
    return Data(report.sequences, report.tokens, True, f"as job {name} found it")


def stated_data(job: FineTuneJob, sequences: int) -> Data:
    """Return as much data as a person says there is."""
    tokens = sequences * job.spec.training.max_sequence_length
    return Data(sequences, tokens, False, "--sequences, each taken to be full")


def most_data(job: FineTuneJob) -> Data:
    """Return the most data that a job can have: each row a sequence of its own, or all steps that it may do."""
    training, rows = job.spec.training, 0
    for dataset in job.spec.datasets:
        if dataset.max_samples is None:
            sequences = training.max_steps_per_epoch * job.spec.global_batch
            basis = "training.maxStepsPerEpoch; how much data there is, prepare finds out"
            return Data(sequences, sequences * training.max_sequence_length, False, basis)
        rows += -(-int(dataset.max_samples * dataset.weight * 1000) // 1000)
    return Data(rows, rows * training.max_sequence_length, False, "datasets[].maxSamples; packing leaves fewer")


def is_same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two specs, every default written out, pack the same sequences."""
    training = ("maxSequenceLength", "packing", "overlong")
    groups = ("model", "datasets")
    return (
        all(one[group] == other[group] for group in groups)
        and all(one["training"][field] == other["training"][field] for field in training)
        and one["evaluation"]["enabled"] == other["evaluation"]["enabled"]
        and one["evaluation"]["holdout"] == other["evaluation"]["holdout"]
    )


def forecast(
    job: FineTuneJob,
    data: Data,
    shape: ModelShape | None,
    gpu: Gpu | None,
    gpu_hour_price: float | None,
    notes: tuple[str, ...] = (),
) -> Forecast:
    """Return what a run would take.

    Args:
        job: what is to be trained.
        data: how much there is.
        shape: of the base model; None where its config.json could not be had.
        gpu: what it would run on; None where that is not known, and on processors.
        gpu_hour_price: of one GPU; None where nobody said.
        notes: what is to be said besides.
    """
    spec, steps = job.spec.trainer_spec(), plan_steps(job.spec, data.sequences)
    full_sequences = min(data.sequences, steps.steps_per_epoch * spec.global_batch)
    share = full_sequences / data.sequences if data.sequences else 0.0
    common = Forecast(
        world_size=spec.compute.world_size,
        global_batch=spec.global_batch,
        data=data,
        steps_per_epoch=steps.steps_per_epoch,
        total_steps=steps.total_steps,
        warmup_steps=steps.warmup_steps,
        total_tokens=round(data.tokens * share * spec.training.epochs),
        precision=str(resolve_precision(spec)),
        gpu=gpu,
        notes=notes,
    )
    if shape is None:
        return common
    return _with_time(_with_memory(common, job, shape), job, gpu_hour_price)


def _with_memory(base: Forecast, job: FineTuneJob, shape: ModelShape) -> Forecast:
    spec = job.spec.trainer_spec()
    memory_bytes = None if base.gpu is None else base.gpu.memory_bytes
    sharding = resolve_sharding(shape, spec, memory_bytes)
    known = {
        "parameters": shape.num_parameters,
        "adapter_parameters": shape.num_adapter_parameters(spec.lora),
        "sharding": str(sharding),
        "kernels": str(resolve_kernels(spec)),
        "recomputes": resolve_checkpointing(shape, spec, sharding, memory_bytes),
        "memory": estimate_memory(shape, spec, sharding),
    }
    try:
        plan = make_plan(shape, spec, base.data.sequences, memory_bytes)
    except TrainerError as error:
        return _changed(base, **known, will_not_fit=error.message)
    return _changed(base, **(known | {"memory": plan.memory}), notes=(*base.notes, *plan.notes))


def _with_time(base: Forecast, job: FineTuneJob, gpu_hour_price: float | None) -> Forecast:
    gpu = base.gpu
    if job.spec.compute.device is not Device.GPU or gpu is None or gpu.peak_flops is None or base.will_not_fit:
        return base
    assert base.parameters is not None
    assert base.adapter_parameters is not None
    share = MEASURED_SHARE_FUSED if base.kernels == Kernels.FUSED else MEASURED_SHARE_PLAIN
    operations = flops_per_token(base.parameters, base.adapter_parameters, recomputes=base.recomputes is not False)
    tokens_per_second = share * gpu.peak_flops * base.world_size / operations
    seconds = base.total_tokens / tokens_per_second
    gpu_hours = seconds * base.world_size / 3600
    cost = None if gpu_hour_price is None else gpu_hours * gpu_hour_price
    basis = (
        f"Time is a guess: {share:.0%} of the peak of {gpu.name}, which one H100 reached with an 8B model; nodes that "
        "exchange weights are slower. It is that of the training alone."
    )
    return _changed(
        base,
        tokens_per_second=tokens_per_second,
        seconds=seconds,
        gpu_hours=gpu_hours,
        cost=cost,
        notes=(*base.notes, basis),
    )


def _changed(forecast: Forecast, **changes: Any) -> Forecast:
    return Forecast(**(vars(forecast) | changes))
