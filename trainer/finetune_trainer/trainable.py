"""The model that a job trains: plain or fused, sharded or whole, filled with the base model's weights."""

from collections.abc import Iterable

import torch

from finetune_trainer.architecture import ModelShape
from finetune_trainer.clock import StepClock
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.spec import Kernels, Sharding, Training
from finetune_trainer.contract.termination import PreparedReport, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.exchange import make_exchange
from finetune_trainer.filling import fill_weights
from finetune_trainer.fused.decoder import FusedDecoder
from finetune_trainer.fused.frozen.fp8 import Fp8, Fp8Fast
from finetune_trainer.fused.frozen.nf4 import Nf4
from finetune_trainer.fused.frozen.weight import FrozenFormat
from finetune_trainer.fused.frozen.whole import Whole
from finetune_trainer.fused.repeated import RepeatedPasses
from finetune_trainer.fused.spread import SpreadLayers
from finetune_trainer.gang import Place
from finetune_trainer.lora import add_adapters, initialise_adapters
from finetune_trainer.model import CausalDecoder, build_model, read_weights
from finetune_trainer.passes import LaunchedPasses, Passes
from finetune_trainer.planner.fitting import resolve_checkpointing, with_checkpointing
from finetune_trainer.planner.formats import FP8, keeps_embedding_on_host
from finetune_trainer.planner.launches import repeats_passes
from finetune_trainer.sharding import count_shares, fill_model, make_mesh, shard_model

TrainableModel = CausalDecoder | FusedDecoder

# Of activations and of what is multiplied with them; narrow formats are what frozen weights are kept as.
DTYPES = {
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8": torch.bfloat16,
    "fp8-fast": torch.bfloat16,
    "nf4": torch.bfloat16,
}
FROZEN_FORMATS: dict[str, type[FrozenFormat]] = {
    "bf16": Whole,
    "fp32": Whole,
    "fp8": Fp8,
    "fp8-fast": Fp8Fast,
    "nf4": Nf4,
}
FP8_CAPABILITY = (8, 9)
FLEX_ATTENTION_BLOCK_TOKENS = 128
TENSOR_CORE_TOKENS = 8


def build_trainable(
    job: TrainerJob, paths: JobPaths, place: Place, prepared: PreparedReport, shape: ModelShape, clock: StepClock
) -> TrainableModel:
    """Build the model that was planned, on this process' device, with a new adapter.

    What it waits for in a step, it tells the clock.

    Raises:
        TrainerError: the weights cannot be read, or are those of another model.
    """
    training = job.spec.training
    multiple = length_multiple(place.device.type, training)
    max_length = -(-training.max_sequence_length // multiple) * multiple
    recomputes = recomputes_activations(job, place, prepared, shape)
    weights = read_weights(paths.shared / prepared.model_path, shape, place.device)
    if prepared.kernels == Kernels.FUSED:
        model = _build_fused(job, place, prepared, shape, max_length, recomputes, weights, clock)
    else:
        model = _build_plain(job, place, prepared, shape, max_length, recomputes, weights)
    initialise_adapters(model, training.seed)
    return model.train()


def _build_fused(
    job: TrainerJob,
    place: Place,
    prepared: PreparedReport,
    shape: ModelShape,
    max_length: int,
    recomputes: bool,
    weights: Iterable[tuple[str, torch.Tensor]],
    clock: StepClock,
) -> TrainableModel:
    refuse_fp8_without_tensor_cores(prepared.precision, place.device)
    dtype, sharding = DTYPES[prepared.precision], Sharding(prepared.sharding)
    spread = None
    if count_shares(sharding, place.num_nodes, place.processes_per_node) > 1:
        spread = SpreadLayers(make_exchange(sharding, place), shape.num_layers, clock)
    model = FusedDecoder(
        shape,
        job.spec.lora,
        dtype,
        place.device,
        max_length,
        recomputes,
        frozen=FROZEN_FORMATS[prepared.precision](dtype, place.device),
        spread=spread,
        embedding_on_host=keeps_embedding_on_host(shape, job.spec),
    )
    fill_weights(model.destinations(), weights)
    if spread is not None:
        spread.publish()
    return model


def refuse_fp8_without_tensor_cores(precision: str, device: torch.device) -> None:
    """Refuse fp8 on a GPU that cannot multiply it.

    Raises:
        TrainerError: INVALID_SPEC.
    """
    if precision not in FP8 or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"training.precision {precision} takes GPUs of compute capability 8.9 and above (L4, RTX 4090, H100, ...), "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}: set training.precision to "
            "bf16, or to nf4 where memory is short",
        )


def _build_plain(
    job: TrainerJob,
    place: Place,
    prepared: PreparedReport,
    shape: ModelShape,
    max_length: int,
    recomputes: bool,
    weights: Iterable[tuple[str, torch.Tensor]],
) -> TrainableModel:
    """Build it without memory, shard it, then fill in weights: no process ever holds more than its share."""
    model = build_model(shape, DTYPES[prepared.precision], max_length, recomputes)
    add_adapters(model, job.spec.lora)
    mesh = make_mesh(Sharding(prepared.sharding), place.device.type, place.num_nodes, place.processes_per_node)
    shard_model(model, mesh)
    fill_model(model, weights, place.device)
    model.fill_rotary_cache(place.device)
    return model


def recomputes_activations(job: TrainerJob, place: Place, prepared: PreparedReport, shape: ModelShape) -> bool:
    """Say whether activations are computed again; where prepare left it open, this GPU's memory decides."""
    if prepared.activation_checkpointing is not None:
        return prepared.activation_checkpointing
    memory_bytes = gpu_memory_bytes(place.device)
    return resolve_checkpointing(shape, job.spec, Sharding(prepared.sharding), memory_bytes) is not False


def gpu_memory_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def open_passes(
    job: TrainerJob, place: Place, prepared: PreparedReport, shape: ModelShape, model: TrainableModel
) -> Passes:
    """Return what adds up the gradients of micro-batches: by CUDA graphs where launching kernels takes too long."""
    memory_bytes = gpu_memory_bytes(place.device)
    if memory_bytes is None or not isinstance(model, FusedDecoder):
        return LaunchedPasses(model)
    spec = with_checkpointing(job.spec, recomputes_activations(job, place, prepared, shape))
    is_repeated = repeats_passes(shape, spec, Sharding(prepared.sharding), memory_bytes)
    return RepeatedPasses(model) if is_repeated else LaunchedPasses(model)


def length_multiple(device_type: str, training: Training) -> int:
    """Return what the length of a micro-batch is rounded up to, in tokens.

    NB: torchtune compiles FlexAttention for each length it meets, and after eight of them PyTorch gives up and computes
    all scores at once. Packed sequences are nearly full anyway, so on a GPU all of them get one length.
    """
    if device_type == "cpu":
        return 1
    if not training.packing:
        return TENSOR_CORE_TOKENS
    return -(-training.max_sequence_length // FLEX_ATTENTION_BLOCK_TOKENS) * FLEX_ATTENTION_BLOCK_TOKENS
