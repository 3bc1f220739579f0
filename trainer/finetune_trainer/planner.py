"""Arithmetic before anything is held: how many steps, in which precision, sharded how, and does it fit.

Knows no torch and does no I/O, so that a plan can be made anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Kernels, LoraTarget, Precision, Sharding, TrainerSpec
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

GIB = 1 << 30
# When nobody said how much memory a GPU has: that of the smallest ones that models are trained on (A10, L4).
ASSUMED_GPU_MEMORY_BYTES = 24 * GIB

# A number of an activation, and of a weight where nothing else is said.
NUMBER_BYTES = {precision: 4 if precision is Precision.FP32 else 2 for precision in Precision}
# A number of a frozen linear layer: fp8 keeps it in bf16 and in fp8, or in two layouts of fp8, NF4 four bits and 16 for
# each 64 numbers.
LINEAR_BYTES = {
    Precision.BF16: 2,
    Precision.FP32: 4,
    Precision.FP8: 2 + 1,
    Precision.FP8_FAST: 1 + 1,
    Precision.NF4: 0.5 + 2 / 64,
}
FP8 = (Precision.FP8, Precision.FP8_FAST)
NARROW = (*FP8, Precision.NF4)
ADAPTER_BYTES = 4  # fp32: at usual learning rates most updates are smaller than the spacing of bf16 numbers
ADAM_BYTES = 8  # two fp32 moments
# Logits of so many tokens exist at once: 1024 tokens of a vocabulary of 128k are 0.5 GB in fp32.
LOSS_CHUNK_TOKENS = 1024
# Of a fused step that computes activations again, the feed-forward takes so many tokens at once.
FEED_FORWARD_TOKENS = 4096
# Products of a fused step that share an input, and what their adapters' columns are rounded up to.
FUSED_GROUPS = (
    (LoraTarget.Q_PROJ, LoraTarget.K_PROJ, LoraTarget.V_PROJ),
    (LoraTarget.O_PROJ,),
    (LoraTarget.GATE_PROJ, LoraTarget.UP_PROJ),
    (LoraTarget.DOWN_PROJ,),
)
ADAPTER_COLUMN_MULTIPLE = 64
FP8_COLUMN_MULTIPLE = 128
FP8_SIZE_MULTIPLE = 16  # of what tensor cores multiply
# CUDA context, NCCL's buffers, libraries; and what the allocator cannot use.
GPU_OVERHEAD_BYTES = 3 * GIB // 2
CPU_OVERHEAD_BYTES = GIB // 2
FRAGMENTATION = 0.07


@dataclass(frozen=True)
class Steps:
    """How long a run is."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of one process, in bytes by what it is for."""

    base_weights: int
    gathered_weights: int  # of sharded layers, while they compute
    adapter: int
    gradients: int
    optimizer: int
    activations: int  # kept from the forward for the backward pass
    workspace: int  # of the layer that is computed backwards, or of the loss: whichever is larger
    overhead: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return (
            self.base_weights
            + self.gathered_weights
            + self.adapter
            + self.gradients
            + self.optimizer
            + self.activations
            + self.workspace
            + self.overhead
        )

    def describe(self) -> str:
        """Return the terms in GiB, the largest first."""
        terms = sorted(vars(self).items(), key=lambda term: -term[1])
        return ", ".join(f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in terms if size >= GIB // 20)


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
    notes = []
    steps = plan_steps(spec, num_sequences)
    if steps.warmup_steps < spec.training.schedule.warmup_steps:
        notes.append(
            f"warm-up is {steps.warmup_steps} steps, half of the run, instead of {spec.training.schedule.warmup_steps}"
        )
    profile = spec.training.profile
    if profile is not None and profile.first_step > steps.total_steps:
        notes.append(
            f"nothing is profiled: the run has {steps.total_steps} steps, training.profile.firstStep is "
            f"{profile.first_step}"
        )
    on_gpu = spec.compute.device is Device.GPU
    sharding = resolve_sharding(shape, spec, gpu_memory_bytes)
    if on_gpu and gpu_memory_bytes is None and spec.compute.sharding is Sharding.AUTO and spec.compute.world_size > 1:
        notes.append(
            f"sharding is {sharding}: the GPUs' memory is not known, {ASSUMED_GPU_MEMORY_BYTES // GIB} GiB assumed"
        )
    check_what_cannot_be(shape, spec)
    kernels = resolve_kernels(spec)
    if spec.training.embedding_on_host and not keeps_embedding_on_host(shape, spec):
        why = "the head is the same table" if shape.tied_embeddings else "that takes fused kernels"
        notes.append(f"the embeddings stay on the GPU: {why}")
    if spec.training.kernels is Kernels.FUSED and kernels is Kernels.PLAIN:
        notes.append(f"kernels are plain: fused ones take bf16 on a GPU, this is {resolve_precision(spec)}")
    recomputes = resolve_checkpointing(shape, spec, sharding, gpu_memory_bytes)
    memory = estimate_memory(shape, _with_checkpointing(spec, recomputes is not False), sharding)
    if on_gpu and gpu_memory_bytes is not None and memory.total > gpu_memory_bytes:
        raise TrainerError(Reason.WILL_NOT_FIT, _will_not_fit(shape, spec, memory, gpu_memory_bytes))
    return TrainingPlan(steps, resolve_precision(spec), sharding, kernels, recomputes, memory, tuple(notes))


def plan_steps(spec: TrainerSpec, num_sequences: int) -> Steps:
    """Count steps. The last global batch of an epoch may be short; it is trained on all the same."""
    steps_per_epoch = min(spec.training.max_steps_per_epoch, -(-num_sequences // spec.global_batch))
    total_steps = steps_per_epoch * spec.training.epochs
    return Steps(steps_per_epoch, total_steps, min(spec.training.schedule.warmup_steps, total_steps // 2))


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


def keeps_embedding_on_host(shape: ModelShape, spec: TrainerSpec) -> bool:
    """Say whether the table of embeddings is in the host's memory: where it was asked for and is not the head too."""
    is_fused = resolve_kernels(spec) is Kernels.FUSED
    return spec.training.embedding_on_host and is_fused and not shape.tied_embeddings


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
    return estimate_memory(shape, _with_checkpointing(spec, False), sharding).total > memory_bytes


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


def estimate_memory(shape: ModelShape, spec: TrainerSpec, sharding: Sharding) -> MemoryEstimate:
    """Estimate the peak memory of one process.

    Without `overhead` it is what torch allocates at its peak; docs/LOG.md holds it against what was measured. Where the
    spec leaves open whether activations are computed again, it is taken that they are.
    """
    precision = resolve_precision(spec)
    number_bytes = NUMBER_BYTES[precision]
    degree = {
        Sharding.REPLICATE: 1,
        Sharding.HYBRID: spec.compute.num_processes_per_node,
        Sharding.FULL: spec.compute.world_size,
    }[sharding]
    adapter_parameters = shape.num_adapter_parameters(spec.lora)
    is_fused = resolve_kernels(spec) is Kernels.FUSED
    columns, joined, shared = _fused_column_bytes(shape, spec) if is_fused else (0, 0, 0)
    linears, rest = _base_bytes(shape, precision)
    if keeps_embedding_on_host(shape, spec):
        rest -= number_bytes * shape.vocab_size * shape.hidden_size
    # One layer computes while the next is fetched. Embeddings and head stay whole with fused kernels, else they are
    # one unit with FSDP's root.
    gathered = 0 if degree == 1 else 2 * (linears + joined) // shape.num_layers
    if degree > 1 and not is_fused:
        embeddings = shape.num_parameters - shape.num_layers * shape.num_layer_parameters
        gathered = number_bytes * (embeddings + 2 * shape.num_layer_parameters)
        rest = -(-rest // degree)
    activations, workspace = _activation_bytes(shape, spec, number_bytes, is_fused)
    terms = MemoryEstimate(
        base_weights=-(-linears // degree) + rest,
        gathered_weights=gathered,
        adapter=ADAPTER_BYTES * adapter_parameters + columns + -(-joined // degree),
        gradients=ADAPTER_BYTES * adapter_parameters,
        optimizer=ADAM_BYTES * adapter_parameters,
        activations=activations,
        workspace=workspace + shared,
        overhead=0,
    )
    fixed = GPU_OVERHEAD_BYTES if spec.compute.device is Device.GPU else CPU_OVERHEAD_BYTES
    return replace(terms, overhead=fixed + int(FRAGMENTATION * terms.total))


def _base_bytes(shape: ModelShape, precision: Precision) -> tuple[int, int]:
    """Return what the linear layers of the blocks take, which may be narrow, and what the other frozen weights do."""
    linears = shape.num_layers * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    rest = NUMBER_BYTES[precision] * (shape.num_parameters - linears)
    if precision is Precision.FP8_FAST and shape.tied_embeddings:  # the head is in fp8, the embedding is not
        rest += 2 * shape.vocab_size * shape.hidden_size
    return int(LINEAR_BYTES[precision] * linears), rest


def _activation_bytes(shape: ModelShape, spec: TrainerSpec, number_bytes: int, is_fused: bool) -> tuple[int, int]:
    """Return what is kept for the backward pass, and what is needed besides while a layer or the loss is computed.

    With checkpointing a layer keeps its input only, and has the rest when its own backward pass is computed; the loss
    is computed before the first of them.
    """
    tokens = spec.training.batch_size * spec.training.max_sequence_length
    stream = number_bytes * shape.hidden_size
    # Logits in the number format of activations; their gradient takes their place.
    loss = min(tokens, LOSS_CHUNK_TOKENS) * shape.vocab_size * number_bytes
    if resolve_precision(spec) is Precision.FP8_FAST:
        loss += min(tokens, LOSS_CHUNK_TOKENS) * shape.vocab_size  # a byte a number
    # Last hidden states, those that predict a target, and the gradient of these.
    loss += 3 * tokens * stream
    kept = 2 * tokens * stream  # the last hidden states and their gradient
    layer, backward = (_fused_bytes if is_fused else _plain_bytes)(shape, spec, number_bytes)
    if spec.training.activation_checkpointing is False:
        return shape.num_layers * tokens * layer, max(tokens * backward + kept, loss)
    work = tokens * (layer + backward) + kept
    if is_fused:
        work = _fused_bytes_without_tape(shape, spec, number_bytes, tokens)
    return tokens * shape.num_layers * stream, max(work, loss)


def _plain_bytes(shape: ModelShape, spec: TrainerSpec, number_bytes: int) -> tuple[int, int]:
    """Return bytes a token of a plain layer's activations, and of its backward pass besides."""
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    # Two norms keep their input in fp32; residuals, normed inputs, attention's output; q, k, v before and after
    # rotation; gate, up, silu(gate) and their product.
    layer = 2 * 4 * shape.hidden_size + number_bytes * (
        4 * shape.hidden_size + 2 * query + 4 * key_value + 4 * shape.intermediate_size
    )
    # An adapter keeps its input after dropout, the mask of the dropout (a byte each), and its narrow middle.
    mask_bytes = number_bytes + 1 if spec.lora.dropout else 0
    for target in spec.lora.targets:
        layer += mask_bytes * shape.linears[target][0] + 3 * number_bytes * spec.lora.rank
    return layer, 3 * number_bytes * shape.intermediate_size  # gradients of gate, up and their product


def _fused_bytes(shape: ModelShape, spec: TrainerSpec, number_bytes: int) -> tuple[int, int]:
    """Return bytes a token of a fused layer's tape (`fused.layer.Tape`), and of its backward pass besides."""
    attention, feed_forward = _tape_bytes(shape, spec, number_bytes)
    streams, inner = _feed_forward_backward_bytes(shape, spec, number_bytes)
    return attention + feed_forward, streams + inner


def _tape_bytes(shape: ModelShape, spec: TrainerSpec, number_bytes: int) -> tuple[int, int]:
    """Return bytes a token of what attention and feed-forward leave for their backward passes."""
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    qkv, output, gate_and_up, down = _fused_columns(spec)
    attention = number_bytes * (shape.hidden_size + 2 * query + 2 * key_value + qkv + output)
    attention += 4 * shape.num_heads + 4  # attention's sums of exponentials, and the norm's
    feed_forward = number_bytes * (shape.hidden_size + 2 * shape.intermediate_size + gate_and_up + down) + 4
    return attention, feed_forward


def _feed_forward_backward_bytes(shape: ModelShape, spec: TrainerSpec, number_bytes: int) -> tuple[int, int]:
    """Return bytes a token of the gradients of the residual stream, and of those inside the feed-forward."""
    streams = number_bytes * 2 * shape.hidden_size
    # The gradient of the gate's product, and of gate and up.
    inner = number_bytes * (3 * shape.intermediate_size + sum(_fused_columns(spec)))
    if spec.lora.dropout:
        inner += number_bytes * shape.intermediate_size  # what is left of the product
    if resolve_precision(spec) in FP8:
        inner += 2 * shape.intermediate_size  # the gradient of gate and up, a byte a number
    return streams, inner


def _fused_bytes_without_tape(shape: ModelShape, spec: TrainerSpec, number_bytes: int, tokens: int) -> int:
    """Return the bytes of a layer's backward pass that makes its tape again, the feed-forward's bit by bit."""
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention, feed_forward = _tape_bytes(shape, spec, number_bytes)
    streams, inner = _feed_forward_backward_bytes(shape, spec, number_bytes)
    # Of the last layer, beside the last hidden states and their gradient.
    in_feed_forward = 2 * tokens * streams + min(tokens, FEED_FORWARD_TOKENS) * (feed_forward + inner)
    # Gradients of attention's output and inputs, of q, k and v side by side; in the kernel, the queries' sums in fp32,
    # and keys' and values' for each head.
    in_attention = tokens * (2 * streams + number_bytes * 2 * (query + 2 * key_value) + (4 + 2 * number_bytes) * query)
    return tokens * attention + max(in_feed_forward, in_attention)


def _fused_columns(spec: TrainerSpec) -> list[int]:
    """Return how many columns the adapters of each product take."""
    return [_rounded_up(ranks, ADAPTER_COLUMN_MULTIPLE) for ranks in _fused_ranks(spec)]


def _fused_ranks(spec: TrainerSpec) -> list[int]:
    return [spec.lora.rank * sum(target in spec.lora.targets for target in group) for group in FUSED_GROUPS]


def _group_size(shape: ModelShape, group: tuple[LoraTarget, ...]) -> tuple[int, int]:
    """Return inputs and outputs of layers that read the same input."""
    return shape.linears[group[0]][0], sum(shape.linears[target][1] for target in group)


def _fused_column_bytes(shape: ModelShape, spec: TrainerSpec) -> tuple[int, int, int]:
    """Return what adapters add beside frozen weights and in their buffers (`fused.frozen`), and what layers share."""
    precision = resolve_precision(spec)
    number_bytes = NUMBER_BYTES[precision]
    beside, joined, largest = 0, 0, 0
    for group, ranks, columns in zip(FUSED_GROUPS, _fused_ranks(spec), _fused_columns(spec), strict=True):
        inputs, outputs = _group_size(shape, group)
        buffer = number_bytes * (inputs + columns) * (outputs + columns)
        tail = _rounded_up(3 * ranks, FP8_COLUMN_MULTIPLE)
        if precision is Precision.FP8_FAST:
            beside += number_bytes * columns * (inputs + outputs)
            joined += tail * (inputs + outputs)
        elif precision is not Precision.NF4:
            joined += buffer - number_bytes * inputs * outputs
        if precision is Precision.FP8:
            joined += tail * inputs
        largest = max(largest, buffer)
    shared = largest if precision is Precision.NF4 else 0
    return shape.num_layers * beside, shape.num_layers * joined, shared


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


# --- what would fit ---------------------------------------------------------------------------------------------------


def _will_not_fit(shape: ModelShape, spec: TrainerSpec, memory: MemoryEstimate, gpu_memory_bytes: int) -> str:
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
    checkpointed = _with_checkpointing(automatic, True)
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
        if checkpointed == _with_checkpointing(spec, spec.training.activation_checkpointing is not False)
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


def _with_checkpointing(spec: TrainerSpec, recomputes: bool) -> TrainerSpec:
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
