"""One transformer block, forward and backward, between the buffers of its matrix products.

The residual stream travels as two tensors, what it was and what a block adds to it; the next norm adds them up while it
reads them anyway. Kept for the backward pass is what matrix products made; what norms and the gate make of it is made
again inside the kernels of the backward pass, which read it anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.fused.attention import Attended, Documents, attend, attend_backward
from finetune_trainer.fused.linear import FusedLinear, LowRank, gradient_of
from finetune_trainer.kernels import kernels_for
from finetune_trainer.lora import TUNE_NAMES

QKV = (LoraTarget.Q_PROJ, LoraTarget.K_PROJ, LoraTarget.V_PROJ)
GATE_AND_UP = (LoraTarget.GATE_PROJ, LoraTarget.UP_PROJ)
MAX_RANK_AT_THE_GATE = 64


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a batch are, and which of them see each other."""

    places: Tensor  # int64 [tokens], from 0 in each document
    cosine: Tensor  # fp32 [max_positions, head_dim / 2]
    sine: Tensor
    interleaved: bool  # see `kernels.plain.rotate`
    documents: Documents


class Seeds(NamedTuple):
    """Of the dropout of a block's adapters; None drops nothing. Layers that read the same input drop the same."""

    qkv: int | None = None
    output: int | None = None
    gate_and_up: int | None = None
    down: int | None = None


@dataclass(frozen=True)
class Tape:
    """What a forward pass keeps for the backward pass."""

    hidden: Tensor  # the residual stream before attention, [tokens, hidden_size]
    attention_inverse_rms: Tensor
    attended: Attended
    middle: Tensor  # the residual stream before the feed-forward, [tokens, hidden_size]
    feed_forward_inverse_rms: Tensor
    gate_and_up: Tensor  # [tokens, 2 * intermediate_size]
    qkv_narrow: Tensor  # the narrow products of the adapters
    output_narrow: Tensor
    gate_and_up_narrow: Tensor
    down_narrow: Tensor


class FusedLayer(nn.Module):
    """A block: frozen weights in the buffers of four products, adapters under the names that `lora` gives them."""

    def __init__(self, shape: ModelShape, lora: Lora, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._shape = shape
        self._kernels = kernels_for(device)
        self.qkv = FusedLinear(QKV, shape, lora, dtype, device, has_bias=shape.attention_bias)
        self.attention_output = FusedLinear((LoraTarget.O_PROJ,), shape, lora, dtype, device)
        self.gate_and_up = FusedLinear(GATE_AND_UP, shape, lora, dtype, device)
        self.down = FusedLinear((LoraTarget.DOWN_PROJ,), shape, lora, dtype, device)
        self.attention_norm = torch.empty(shape.hidden_size, dtype=dtype, device=device)
        self.feed_forward_norm = torch.empty(shape.hidden_size, dtype=dtype, device=device)
        self.adapters: Mapping[LoraTarget, LowRank] = {}
        self._add_adapters(shape, lora, device)
        # With dropout or a larger rank the sums would not fit a program's registers, or the product is needed itself.
        self._adds_gradients_at_the_gate = lora.rank <= MAX_RANK_AT_THE_GATE and not (
            {*GATE_AND_UP, LoraTarget.DOWN_PROJ} - set(lora.targets)
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

    def frozen(self) -> dict[str, Tensor]:
        """Return the frozen weights by torchtune's names, views into the buffers."""
        weights = {"sa_norm.scale": self.attention_norm, "mlp_norm.scale": self.feed_forward_norm}
        for linear in self.linears:
            weights |= {f"{TUNE_NAMES[target]}.weight": weight for target, weight in linear.weights.items()}
            weights |= {f"{TUNE_NAMES[target]}.bias": bias for target, bias in linear.biases.items()}
        return weights

    def forward(
        self, residual: Tensor, addend: Tensor | None, positions: Positions, seeds: Seeds
    ) -> tuple[Tensor, Tape]:
        """Return what the block adds to `Tape.middle`, [tokens, hidden_size], and the tape."""
        tape, joined = self._record(residual, addend, positions, seeds)
        return self.down.forward(joined), tape

    def replay(self, hidden: Tensor, positions: Positions, seeds: Seeds) -> Tape:
        """Make the tape again from `Tape.hidden`; the last product, a quarter of the block, is not needed for it."""
        return self._record(hidden, None, positions, seeds)[0]

    def _record(
        self, residual: Tensor, addend: Tensor | None, positions: Positions, seeds: Seeds
    ) -> tuple[Tape, Tensor]:
        """Compute all but the last product; return the tape and that product's input."""
        shape, kernels, tokens = self._shape, self._kernels, len(residual)
        joined = self.qkv.new_input(tokens)
        normalised = joined[:, : shape.hidden_size]
        hidden, inverse_rms = kernels.add_and_normalise(
            residual, addend, self.attention_norm, shape.norm_epsilon, normalised
        )
        qkv_narrow = self.qkv.narrow(joined, seeds.qkv)
        qkv = self.qkv.forward(joined)
        attended = self._attend(qkv, positions)
        output, output_narrow = self.attention_output.forward_apart(attended.output, seeds.output)

        joined = self.gate_and_up.new_input(tokens)
        normalised = joined[:, : shape.hidden_size]
        middle, middle_inverse_rms = kernels.add_and_normalise(
            hidden, output.detach(), self.feed_forward_norm, shape.norm_epsilon, normalised
        )
        gate_and_up_narrow = self.gate_and_up.narrow(joined, seeds.gate_and_up)
        gate_and_up = self.gate_and_up.forward(joined)
        joined = self.down.new_input(tokens)
        kernels.gate(gate_and_up, joined[:, : shape.intermediate_size])
        down_narrow = self.down.narrow(joined, seeds.down)
        tape = Tape(
            hidden,
            inverse_rms,
            attended,
            middle,
            middle_inverse_rms,
            gate_and_up,
            qkv_narrow,
            output_narrow,
            gate_and_up_narrow,
            down_narrow,
        )
        return tape, joined

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

    def backward(
        self, tape: Tape, joined: Tensor, positions: Positions, seeds: Seeds, below: "FusedLayer | None"
    ) -> Tensor | None:
        """Add to the adapters' gradients, and return the gradient of the block's input.

        Args:
            tape: of the forward pass.
            joined: gradient of the residual stream behind the block, in a buffer of `down.new_gradient`.
            positions: of the forward pass.
            seeds: of the forward pass.
            below: the block that gets the gradient, in a buffer of its own; None where nothing needs it.
        """
        joined = self._feed_forward_backward(tape, joined, seeds)
        return self._attention_backward(tape, joined, positions, seeds, below)

    def _feed_forward_backward(self, tape: Tape, joined: Tensor, seeds: Seeds) -> Tensor:
        size, tokens = self._shape.hidden_size, len(joined)
        self.down.narrow_gradient(joined)
        gradient = self.down.backward(joined, seeds.down)
        inner = self.gate_and_up.new_gradient(tokens)
        at_once = seeds.down is None and self._adds_gradients_at_the_gate
        if at_once:
            self._gate_backward_with_adapters(tape, joined, gradient, inner)
        else:
            self._kernels.gate_backward(tape.gate_and_up, gradient, inner[:, : self.gate_and_up.outputs])
            self.down.add_gradients_of_a(joined, gradient, self.adapters, seeds.down)
        self.down.add_gradients_of_b(joined, tape.down_narrow, self.adapters)

        self.gate_and_up.narrow_gradient(inner)
        gradient = self.gate_and_up.backward(inner, seeds.gate_and_up)
        out = self.attention_output.new_gradient(tokens)
        self._kernels.normalise_backward(
            gradient,
            tape.middle,
            tape.feed_forward_inverse_rms,
            self.feed_forward_norm,
            joined[:, :size],
            out[:, :size],
        )
        self.gate_and_up.add_gradients_of_a(inner, gradient, self.adapters, seeds.gate_and_up)
        if not at_once:
            self.gate_and_up.add_gradients_of_b(inner, tape.gate_and_up_narrow, self.adapters)
        return out

    def _gate_backward_with_adapters(self, tape: Tape, joined: Tensor, gradient: Tensor, inner: Tensor) -> None:
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
        self, tape: Tape, joined: Tensor, positions: Positions, seeds: Seeds, below: "FusedLayer | None"
    ) -> Tensor | None:
        size, tokens = self._shape.hidden_size, len(joined)
        linear, attended = self.attention_output, tape.attended
        linear.narrow_gradient(joined)
        gradient = linear.backward(joined, seeds.output)
        linear.add_gradients(joined, attended.output.detach(), tape.output_narrow, self.adapters, seeds.output)
        inner = self.qkv.new_gradient(tokens)
        self._kernels.rotate_backward(
            *attend_backward(attended, gradient),
            positions.cosine,
            positions.sine,
            positions.places,
            positions.interleaved,
            inner[:, : self.qkv.outputs],
        )
        self.qkv.narrow_gradient(inner)
        # What the block below gets; the lowest block still needs its normalised input for the gradient of A.
        gradient = torch.zeros_like(tape.hidden) if below is None else self.qkv.backward(inner, seeds.qkv)
        out = joined if below is None else below.down.new_gradient(tokens)
        self._kernels.normalise_backward(
            gradient,
            tape.hidden,
            tape.attention_inverse_rms,
            self.attention_norm,
            joined[:, :size],
            out[:, :size],
        )
        self.qkv.add_gradients(inner, gradient, tape.qkv_narrow, self.adapters, seeds.qkv)
        return None if below is None else out
