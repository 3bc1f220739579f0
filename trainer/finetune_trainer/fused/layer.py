"""One transformer block, forward and backward, between the buffers of its matrix products.

The residual stream travels as two tensors, what it was and what a block adds to it; the next norm adds them up while it
reads them anyway. Kept for the backward pass is what matrix products made; what norms and the gate make of it is made
again inside the kernels of the backward pass, which read it anyway.

The last block need not compute for all tokens: what follows attention serves a token alone, and only some are trained.
So it may be told which rows are needed, and what is behind its attention then has those rows only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.filling import Destination
from finetune_trainer.fused.attention import Attended, Documents, attend, attend_backward
from finetune_trainer.fused.frozen.weight import FrozenFormat, Operand
from finetune_trainer.fused.linear import Drop, FusedLinear, LowRank, gradient_of
from finetune_trainer.kernels import kernels_for
from finetune_trainer.lora import TUNE_NAMES
from finetune_trainer.planner.memory import FEED_FORWARD_TOKENS

QKV = (LoraTarget.Q_PROJ, LoraTarget.K_PROJ, LoraTarget.V_PROJ)
GATE_AND_UP = (LoraTarget.GATE_PROJ, LoraTarget.UP_PROJ)
MAX_RANK_AT_THE_GATE = 64
# A program of that kernel owns 64 columns and walks through all tokens: SmolLM2's 1536 are 24 programs, which took 17
# of the 64 ms of a step on the 132 processors of an H100.
MIN_SIZE_AT_THE_GATE = 4096


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a batch are, and which of them see each other."""

    places: Tensor  # int64 [tokens], from 0 in each document
    cosine: Tensor  # fp32 [max_positions, head_dim / 2]
    sine: Tensor
    interleaved: bool  # see `kernels.plain.rotate`
    documents: Documents


class Drops(NamedTuple):
    """The dropout of a block's adapters; None drops nothing. Layers that read the same input drop the same."""

    qkv: Drop | None = None
    output: Drop | None = None
    gate_and_up: Drop | None = None
    down: Drop | None = None

    def from_row(self, row: int) -> "Drops":
        """Return the dropout of the tokens from a row on."""
        return Drops(*(None if drop is None else drop._replace(first_row=row) for drop in self))


@dataclass(frozen=True)
class AttentionTape:
    """What the forward pass of a block's attention leaves for the backward pass."""

    hidden: Tensor  # the residual stream before attention, [tokens, hidden_size]
    inverse_rms: Tensor
    attended: Attended
    qkv_narrow: Tensor  # the narrow products of the adapters
    output_narrow: Tensor


@dataclass(frozen=True)
class FeedForwardTape:
    """What the forward pass of a block's feed-forward leaves for the backward pass."""

    middle: Tensor  # the residual stream before the feed-forward, [tokens, hidden_size]
    inverse_rms: Tensor
    gate_and_up: Tensor  # [tokens, 2 * intermediate_size]
    gate_and_up_narrow: Tensor  # the narrow products of the adapters
    down_narrow: Tensor


@dataclass(frozen=True)
class Tape:
    """What a forward pass keeps for the backward pass."""

    attention: AttentionTape
    feed_forward: FeedForwardTape


class FusedLayer(nn.Module):
    """A block: frozen weights in the buffers of four products, adapters under the names that `lora` gives them."""

    def __init__(self, shape: ModelShape, lora: Lora, frozen: FrozenFormat) -> None:
        super().__init__()
        dtype, device = frozen.dtype, frozen.device
        self._shape = shape
        self._kernels = kernels_for(device)
        self.qkv = FusedLinear(QKV, shape, lora, frozen, has_bias=shape.attention_bias)
        self.attention_output = FusedLinear((LoraTarget.O_PROJ,), shape, lora, frozen)
        self.gate_and_up = FusedLinear(GATE_AND_UP, shape, lora, frozen)
        self.down = FusedLinear((LoraTarget.DOWN_PROJ,), shape, lora, frozen)
        self.attention_norm = torch.empty(shape.hidden_size, dtype=dtype, device=device)
        self.feed_forward_norm = torch.empty(shape.hidden_size, dtype=dtype, device=device)
        self.adapters: Mapping[LoraTarget, LowRank] = {}
        self._add_adapters(shape, lora, device)
        # With dropout or a larger rank the sums would not fit a program's registers, or the product is needed itself.
        self._adds_gradients_at_the_gate = (
            lora.rank <= MAX_RANK_AT_THE_GATE
            and shape.intermediate_size >= MIN_SIZE_AT_THE_GATE
            and {*GATE_AND_UP, LoraTarget.DOWN_PROJ} <= set(lora.targets)
        )

    def _add_adapters(self, shape: ModelShape, lora: Lora, device: torch.device) -> None:
        owners: dict[str, nn.Module] = {}
        adapters = {}
        for target in lora.targets:
            owner, _, name = TUNE_NAMES[target].rpartition(".")
            adapters[target] = LowRank(*shape.linears[target], lora.rank, device)
            owners.setdefault(owner, nn.Module()).add_module(name, adapters[target])
        for name, module in owners.items():
            self.add_module(name, module)
        self.adapters = adapters

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        """The four products of the block."""
        return self.qkv, self.attention_output, self.gate_and_up, self.down

    def destinations(self) -> dict[str, Destination]:
        """Return where the frozen weights go, by torchtune's names."""
        found = {
            "sa_norm.scale": Destination.of(self.attention_norm),
            "mlp_norm.scale": Destination.of(self.feed_forward_norm),
        }
        for linear in self.linears:
            found |= {f"{TUNE_NAMES[target]}.weight": place for target, place in linear.destinations().items()}
            found |= {f"{TUNE_NAMES[target]}.bias": place for target, place in linear.biases().items()}
        return found

    # --- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self, residual: Tensor, addend: Tensor | None, positions: Positions, drops: Drops, needed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tape]:
        """Return the residual stream before the feed-forward, what that adds to it, and the tape.

        Args:
            residual: the stream before the block below added to it, [tokens, hidden_size].
            addend: what that adds; None at the lowest block.
            positions: of the tokens.
            drops: of the tokens.
            needed: int64, the rows that are returned; None returns all.
        """
        attention, output = self._attention(residual, addend, positions, drops, needed)
        middle = torch.empty_like(output)
        feed_forward, gated = self._feed_forward(some_rows(attention.hidden, needed), output, middle, drops)
        return middle, self.down.forward(gated), Tape(attention, feed_forward)

    def forward_without_tape(
        self, residual: Tensor, addend: Tensor | None, positions: Positions, drops: Drops, needed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` returns, but the block's input in place of the tape, which `backward` makes again.

        The feed-forward, whose activations are the widest, is computed for some tokens at a time, here and there.
        """
        attention, output = self._attention(residual, addend, positions, drops, needed)
        hidden, middle, added = some_rows(attention.hidden, needed), torch.empty_like(output), torch.empty_like(output)
        for some in chunks_of(len(output)):
            _, gated = self._feed_forward(hidden[some], output[some], middle[some], drops.from_row(some.start))
            added[some] = self.down.forward(gated)
        return middle, added, attention.hidden

    def _attention(
        self, residual: Tensor, addend: Tensor | None, positions: Positions, drops: Drops, needed: Tensor | None
    ) -> tuple[AttentionTape, Tensor]:
        """Compute attention; return the tape, and what it adds to the residual stream in the rows that are needed."""
        shape = self._shape
        operand = self.qkv.new_input(len(residual))
        normalised = operand.joined[:, : shape.hidden_size]
        hidden, inverse_rms = self._kernels.add_and_normalise(
            residual, addend, self.attention_norm, shape.norm_epsilon, normalised, None, operand.rounded
        )
        qkv_narrow = self.qkv.narrow(operand, drops.qkv)
        qkv = self.qkv.forward(operand)
        del operand, normalised
        attended = self._attend(qkv, positions)
        heads = some_rows(attended.output.detach(), needed)
        output, output_narrow = self.attention_output.forward_apart(heads, drops.output)
        return AttentionTape(hidden, inverse_rms, attended, qkv_narrow, output_narrow), output

    def _feed_forward(
        self, hidden: Tensor, output: Tensor, middle: Tensor, drops: Drops
    ) -> tuple[FeedForwardTape, Operand]:
        """Compute the feed-forward but for its last product, which no tape needs.

        Args:
            hidden: the residual stream before attention.
            output: what attention adds to it.
            middle: overwritten with the sum of the two.
            drops: of the tokens.

        Returns:
            the tape, and the input of the last product.
        """
        shape, kernels, tokens = self._shape, self._kernels, len(hidden)
        operand = self.gate_and_up.new_input(tokens)
        normalised = operand.joined[:, : shape.hidden_size]
        _, inverse_rms = kernels.add_and_normalise(
            hidden, output, self.feed_forward_norm, shape.norm_epsilon, normalised, middle, operand.rounded
        )
        gate_and_up_narrow = self.gate_and_up.narrow(operand, drops.gate_and_up)
        gate_and_up = self.gate_and_up.forward(operand)
        del operand, normalised
        gated = self.down.new_input(tokens)
        kernels.gate(gate_and_up, gated.joined[:, : shape.intermediate_size], gated.rounded)
        down_narrow = self.down.narrow(gated, drops.down)
        return FeedForwardTape(middle, inverse_rms, gate_and_up, gate_and_up_narrow, down_narrow), gated

    def _attend(self, qkv: Tensor, positions: Positions) -> Attended:
        shape = self._shape
        num_turned = shape.num_heads + shape.num_kv_heads
        self._kernels.rotate(
            qkv,
            num_turned,
            shape.head_dim,
            positions.cosine,
            positions.sine,
            positions.places,
            positions.interleaved,
        )
        heads = qkv.view(len(qkv), -1, shape.head_dim)
        queries, keys, values = torch.split(heads, [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        return attend(queries, keys, values, positions.documents)

    # --- backward -----------------------------------------------------------------------------------------------------

    def backward(
        self,
        tape: Tape | Tensor,
        incoming: Operand,
        positions: Positions,
        drops: Drops,
        below: "FusedLayer | None",
        needed: Tensor | None = None,
    ) -> Operand | None:
        """Add to the adapters' gradients, and return the gradient of the block's input.

        Args:
            tape: of the forward pass, or the block's input.
            incoming: gradient of the residual stream behind the block, in the buffers of `new_incoming`.
            positions: of the forward pass.
            drops: of the forward pass.
            below: the block that gets the gradient, in buffers of its own; None where nothing needs it.
            needed: of the forward pass; `incoming` has those rows.
        """
        out = self.attention_output.new_gradient(len(incoming.joined), writer_rounds=True)
        if isinstance(tape, Tape):
            attention = tape.attention
            self._feed_forward_backward(tape.feed_forward, incoming, drops, out)
        else:
            attention = self._backward_without_tape(tape, incoming, positions, drops, out, needed)
        return self._attention_backward(attention, out, positions, drops, below, needed)

    def new_incoming(self, tokens: int) -> Operand:
        """Return empty buffers for the gradient of the residual stream behind the block."""
        return self.down.new_gradient(tokens, writer_rounds=True)

    def _backward_without_tape(
        self,
        hidden: Tensor,
        incoming: Operand,
        positions: Positions,
        drops: Drops,
        out: Operand,
        needed: Tensor | None,
    ) -> AttentionTape:
        """Do the backward pass of the feed-forward from the block's input, and return the tape of attention."""
        attention, output = self._attention(hidden, None, positions, drops, needed)
        hidden = some_rows(hidden, needed)
        for some in chunks_of(len(output)):
            own, middle = drops.from_row(some.start), torch.empty_like(output[some])
            # The input of the last product is let go at once: it was 118 MB of the peak of an 8B model in NF4.
            tape = self._feed_forward(hidden[some], output[some], middle, own)[0]
            self._feed_forward_backward(tape, incoming.of_tokens(some), own, out.of_tokens(some))
        return attention

    def _feed_forward_backward(self, tape: FeedForwardTape, incoming: Operand, drops: Drops, out: Operand) -> None:
        """Write the gradient of the residual stream before the feed-forward into buffers of attention's output."""
        size = self._shape.hidden_size
        self.down.narrow_gradient(incoming)
        gradient = self.down.backward(incoming, drops.down)
        at_once = drops.down is None and self._adds_gradients_at_the_gate
        # A program of the kernel that also adds to the adapters' gradients never sees a whole row.
        inner = self.gate_and_up.new_gradient(len(gradient), writer_rounds=not at_once)
        if at_once:
            self._gate_backward_with_adapters(tape, incoming.joined, gradient, inner.joined)
        else:
            gates, wants_product = inner.joined[:, : self.gate_and_up.outputs], bool(self.down.slots)
            self._kernels.gate_backward(tape.gate_and_up, gradient, gates, wants_product, inner.rounded)
            self.down.add_gradients_of_a(incoming, gradient, self.adapters, drops.down)
        self.down.add_gradients_of_b(incoming, tape.down_narrow, self.adapters)

        self.gate_and_up.narrow_gradient(inner)
        gradient = self.gate_and_up.backward(inner, drops.gate_and_up)
        behind, before = incoming.joined[:, :size], out.joined[:, :size]
        self._kernels.normalise_backward(
            gradient, tape.middle, tape.inverse_rms, self.feed_forward_norm, behind, before, out.rounded
        )
        self.gate_and_up.add_gradients_of_a(inner, gradient, self.adapters, drops.gate_and_up)
        if not at_once:
            self.gate_and_up.add_gradients_of_b(inner, tape.gate_and_up_narrow, self.adapters)

    def _gate_backward_with_adapters(
        self, tape: FeedForwardTape, joined: Tensor, gradient: Tensor, inner: Tensor
    ) -> None:
        """Compute the gradients of gate and up, and those of the adapters that they or their product are factors of."""
        gate, up, down = (self.adapters[target] for target in (*GATE_AND_UP, LoraTarget.DOWN_PROJ))
        self._kernels.gate_backward_with_adapters(
            tape.gate_and_up,
            gradient,
            inner[:, : self.gate_and_up.outputs],
            joined[:, self.down.outputs :],
            tape.gate_and_up_narrow,
            gradient_of(down.lora_a),
            gradient_of(gate.lora_b),
            gradient_of(up.lora_b),
        )

    def _attention_backward(
        self,
        tape: AttentionTape,
        incoming: Operand,
        positions: Positions,
        drops: Drops,
        below: "FusedLayer | None",
        needed: Tensor | None,
    ) -> Operand | None:
        size, tokens = self._shape.hidden_size, len(tape.hidden)
        linear, attended = self.attention_output, tape.attended
        linear.narrow_gradient(incoming)
        gradient = linear.backward(incoming, drops.output)
        heads = some_rows(attended.output.detach(), needed)
        linear.add_gradients(incoming, heads, tape.output_narrow, self.adapters, drops.output)
        gradient, behind = (in_all_rows(matrix, needed, tokens) for matrix in (gradient, incoming.joined))
        inner = self.qkv.new_gradient(tokens, writer_rounds=True)
        self._kernels.rotate_backward(
            *attend_backward(attended, gradient),
            positions.cosine,
            positions.sine,
            positions.places,
            positions.interleaved,
            inner.joined[:, : self.qkv.outputs],
            inner.rounded,
        )
        self.qkv.narrow_gradient(inner)
        # What the block below gets; the lowest block still needs its normalised input for the gradient of A.
        gradient = torch.zeros_like(tape.hidden) if below is None else self.qkv.backward(inner, drops.qkv)
        out = Operand(behind) if below is None else below.new_incoming(tokens)
        behind, before = behind[:, :size], out.joined[:, :size]
        self._kernels.normalise_backward(
            gradient, tape.hidden, tape.inverse_rms, self.attention_norm, behind, before, out.rounded
        )
        self.qkv.add_gradients(inner, gradient, tape.qkv_narrow, self.adapters, drops.qkv)
        return None if below is None else out


def some_rows(matrix: Tensor, needed: Tensor | None) -> Tensor:
    """Return the rows that are needed, side by side, or the matrix itself where all are."""
    return matrix if needed is None else matrix[needed]


def in_all_rows(matrix: Tensor, needed: Tensor | None, count: int) -> Tensor:
    """Return a matrix of so many rows with those given at their places and zeros elsewhere."""
    return matrix if needed is None else matrix.new_zeros(count, matrix.shape[1]).index_copy_(0, needed, matrix)


def chunks_of(tokens: int) -> list[slice]:
    """Return the tokens that a feed-forward without a tape computes at once."""
    starts = range(0, tokens, FEED_FORWARD_TOKENS)
    return [slice(start, min(start + FEED_FORWARD_TOKENS, tokens)) for start in starts]
