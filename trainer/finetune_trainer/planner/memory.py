"""The peak memory of one process, from the model's shape and what is asked for."""

from dataclasses import dataclass, replace

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Device, Kernels, LoraTarget, Precision, Sharding, TrainerSpec
from finetune_trainer.planner.formats import (
    FP8,
    LINEAR_BYTES,
    NUMBER_BYTES,
    keeps_embedding_on_host,
    num_exact_at_each_end,
    resolve_kernels,
    resolve_precision,
)

GIB = 1 << 30
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
# CUDA context, NCCL's buffers, libraries; and what the allocator cannot use.
GPU_OVERHEAD_BYTES = 3 * GIB // 2
CPU_OVERHEAD_BYTES = GIB // 2
FRAGMENTATION = 0.07


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
    layers = _layers_by_format(shape, precision)
    linears = sum(count * _linear_bytes(shape, kept_as) for kept_as, count in layers)
    rest = number_bytes * (shape.num_parameters - shape.num_layers * _num_in_linears(shape))
    if keeps_embedding_on_host(shape, spec):
        rest -= number_bytes * shape.vocab_size * shape.hidden_size
    columns, joined = 0, 0
    # One layer computes while the next is fetched. Embeddings and head stay whole with fused kernels, else they are
    # one unit with FSDP's root.
    gathered = 0
    if is_fused:
        for kept_as, count in layers:
            beside, inside = _column_bytes(shape, spec, kept_as)
            columns, joined = columns + count * beside, joined + count * inside
            gathered += 2 * (_linear_bytes(shape, kept_as) + inside) if degree > 1 else 0
    elif degree > 1:
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
        workspace=workspace + _shared_bytes(shape, spec),
        overhead=0,
    )
    fixed = GPU_OVERHEAD_BYTES if spec.compute.device is Device.GPU else CPU_OVERHEAD_BYTES
    return replace(terms, overhead=fixed + int(FRAGMENTATION * terms.total))


def _layers_by_format(shape: ModelShape, precision: Precision) -> list[tuple[Precision, int]]:
    """Return what layers are kept as, and how many of them."""
    exact = 2 * num_exact_at_each_end(shape.num_layers) if precision is Precision.FP8_FAST else 0
    layers = [(Precision.FP8, exact), (precision, shape.num_layers - exact)]
    return [(kept_as, count) for kept_as, count in layers if count]


def _num_in_linears(shape: ModelShape) -> int:
    """Return the numbers in a block's linear layers."""
    return sum(inputs * outputs for inputs, outputs in shape.linears.values())


def _linear_bytes(shape: ModelShape, kept_as: Precision) -> int:
    """Return what the linear layers of a block take."""
    return int(LINEAR_BYTES[kept_as] * _num_in_linears(shape))


def _activation_bytes(shape: ModelShape, spec: TrainerSpec, number_bytes: int, is_fused: bool) -> tuple[int, int]:
    """Return what is kept for the backward pass, and what is needed besides while a layer or the loss is computed.

    With checkpointing a layer keeps its input only, and has the rest when its own backward pass is computed; the loss
    is computed before the first of them.
    """
    tokens = spec.training.batch_size * spec.training.max_sequence_length
    stream = number_bytes * shape.hidden_size
    # Logits in the number format of activations; their gradient takes their place.
    loss = min(tokens, LOSS_CHUNK_TOKENS) * shape.vocab_size * number_bytes
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
    if resolve_precision(spec) in FP8:
        streams += 2 * shape.hidden_size  # once more in fp8, as the products of the backward pass take them
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
    streams += number_bytes * 2 * shape.hidden_size
    in_feed_forward = tokens * streams + min(tokens, FEED_FORWARD_TOKENS) * (feed_forward + inner)
    # Gradients of attention's output and inputs, of q, k and v side by side; in the kernel, the queries' sums in fp32,
    # and keys' and values' for each head.
    in_attention = tokens * (streams + number_bytes * 2 * (query + 2 * key_value) + (4 + 2 * number_bytes) * query)
    return tokens * attention + max(in_feed_forward, in_attention)


def _column_bytes(shape: ModelShape, spec: TrainerSpec, kept_as: Precision) -> tuple[int, int]:
    """Return what adapters add beside the frozen weights of a fused block, and in their buffers (`fused.frozen`)."""
    number_bytes = NUMBER_BYTES[kept_as]
    beside, joined = 0, 0
    for group, ranks, columns in zip(FUSED_GROUPS, _fused_ranks(spec), _fused_columns(spec), strict=True):
        inputs, outputs = _group_size(shape, group)
        tail = _rounded_up(3 * ranks, FP8_COLUMN_MULTIPLE)
        if kept_as is Precision.FP8_FAST:
            beside += number_bytes * columns * (inputs + outputs)
            joined += tail * (inputs + outputs)
        elif kept_as is not Precision.NF4:
            joined += number_bytes * ((inputs + columns) * (outputs + columns) - inputs * outputs)
        if kept_as is Precision.FP8:
            joined += tail * inputs
    return beside, joined


def _shared_bytes(shape: ModelShape, spec: TrainerSpec) -> int:
    """Return the bytes of the buffer in which all weights in NF4 are brought back, one after the other."""
    if resolve_precision(spec) is not Precision.NF4:
        return 0
    sizes = [_group_size(shape, group) for group in FUSED_GROUPS]
    buffers = zip(sizes, _fused_columns(spec), strict=True)
    return NUMBER_BYTES[Precision.NF4] * max((i + columns) * (o + columns) for (i, o), columns in buffers)


def _fused_columns(spec: TrainerSpec) -> list[int]:
    """Return how many columns the adapters of each product take."""
    return [_rounded_up(ranks, ADAPTER_COLUMN_MULTIPLE) for ranks in _fused_ranks(spec)]


def _fused_ranks(spec: TrainerSpec) -> list[int]:
    return [spec.lora.rank * sum(target in spec.lora.targets for target in group) for group in FUSED_GROUPS]


def _group_size(shape: ModelShape, group: tuple[LoraTarget, ...]) -> tuple[int, int]:
    """Return inputs and outputs of layers that read the same input."""
    return shape.linears[group[0]][0], sum(shape.linears[target][1] for target in group)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
