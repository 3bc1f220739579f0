"""Linear layers that read the same input, with their adapters, as one matrix product.

A frozen weight and its adapter lie in one buffer of [outputs + p, inputs + p] numbers:

    W  B        W: the weights of all layers of the group, one above the other
    A  0        A, B: their adapters; p is the sum of their ranks, rounded up to `COLUMN_MULTIPLE`

With the input x beside t = s x A' in one buffer of activations, the output x W' + t B' is one product, as is, with the
incoming gradient g beside u = s g B, the gradient g W + u A of the input. An adapter then adds a few columns to a large
product in place of passes of its own over its outputs: 9 % of a step on an H100, see docs/LOG.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.kernels import kernels_for

# Of a row of 16-bit numbers: tensor cores take rows that start on 128 bytes (rank 16 without it: 1.3 % of a step).
COLUMN_MULTIPLE = 64


class LowRank(nn.Module):
    """The adapter of one linear layer: master values in fp32, `lora_a` [rank, inputs] and `lora_b` [outputs, rank]."""

    def __init__(self, inputs: int, outputs: int, rank: int, device: torch.device) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(rank, inputs, dtype=torch.float32, device=device))
        self.lora_b = nn.Parameter(torch.empty(outputs, rank, dtype=torch.float32, device=device))


@dataclass(frozen=True)
class Slot:
    """Where an adapter lies in the buffer of its group."""

    outputs: slice  # rows of W and B
    ranks: slice  # rows of A, columns of B


class FusedLinear:
    """The linear layers of a block that read the same input.

    Args:
        targets: of the group, in the order of their outputs.
        shape: of the model.
        lora: the adapter; a layer that is no target of it has none.
        dtype: of weights and products.
        device: to hold them.
        has_bias: the layers have one.
    """

    def __init__(
        self,
        targets: Sequence[LoraTarget],
        shape: ModelShape,
        lora: Lora,
        dtype: torch.dtype,
        device: torch.device,
        has_bias: bool = False,
    ) -> None:
        sizes = [shape.linears[target] for target in targets]
        self.inputs, self.outputs = sizes[0][0], sum(outputs for _, outputs in sizes)
        self.scale, self.dropout = lora.alpha / lora.rank, lora.dropout
        self.kernels = kernels_for(device)
        self.slots: dict[LoraTarget, Slot] = {}
        self.weights: dict[LoraTarget, Tensor] = {}
        adapted = [target for target in targets if target in lora.targets]
        self.num_columns = -(-len(adapted) * lora.rank // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        rows, columns = self.outputs + self.num_columns, self.inputs + self.num_columns
        # Zeros, as the columns that rounding up has left are multiplied with.
        self.buffer = torch.zeros(rows, columns, dtype=dtype, device=device)
        self.bias = torch.zeros(self.outputs, dtype=dtype, device=device) if has_bias else None
        self.biases: dict[LoraTarget, Tensor] = {}
        start = 0
        for target, (_, outputs) in zip(targets, sizes, strict=True):
            own = slice(start, start + outputs)
            self.weights[target] = self.buffer[own, : self.inputs]
            if self.bias is not None:
                self.biases[target] = self.bias[own]
            if target in adapted:
                first = adapted.index(target) * lora.rank
                self.slots[target] = Slot(own, slice(first, first + lora.rank))
            start += outputs

    @property
    def matrix_a(self) -> Tensor:
        """The A matrices of the group, one above the other, [num_columns, inputs]."""
        return self.buffer[self.outputs :, : self.inputs]

    @property
    def matrix_b(self) -> Tensor:
        """The B matrices of the group on a diagonal, [outputs, num_columns]."""
        return self.buffer[: self.outputs, self.inputs :]

    def places(self, adapters: Mapping[LoraTarget, LowRank]) -> list[tuple[Tensor, Tensor]]:
        """Return where the values of each adapter go: pairs of a place in the buffer and the values."""
        return [
            pair
            for target, slot in self.slots.items()
            for pair in (
                (self.matrix_a[slot.ranks], adapters[target].lora_a),
                (self.matrix_b[slot.outputs, slot.ranks], adapters[target].lora_b),
            )
        ]

    # --- forward ------------------------------------------------------------------------------------------------------

    def new_input(self, tokens: int) -> Tensor:
        """Return an empty buffer for the input x and the narrow product t beside it, [tokens, inputs + num_columns]."""
        return self.buffer.new_empty(tokens, self.inputs + self.num_columns)

    def narrow(self, joined: Tensor, seed: int | None) -> Tensor:
        """Write t = s x A' beside x, and return a copy of it, [tokens, num_columns].

        Args:
            joined: of `new_input`, x written.
            seed: of the dropout of x; None drops nothing.
        """
        t = joined[:, self.inputs :]
        self._narrow(joined[:, : self.inputs], t, seed)
        return t.clone()

    def forward(self, joined: Tensor) -> Tensor:
        """Map x with t beside it to the output, [tokens, outputs]."""
        weight = self.buffer[: self.outputs].T
        return joined @ weight if self.bias is None else torch.addmm(self.bias, joined, weight)

    def forward_apart(self, x: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        """Return the output and t for an x that lies elsewhere; it takes another pass over the output."""
        output = x @ self.buffer[: self.outputs, : self.inputs].T
        t = x.new_empty(len(x), self.num_columns)
        if self.num_columns:
            self._narrow(x, t, seed)
            output.addmm_(t, self.matrix_b.T)
        return output, t

    def _narrow(self, x: Tensor, out: Tensor, seed: int | None) -> None:
        if self.num_columns:
            torch.addmm(out, self._dropped(x, seed), self.matrix_a.T, beta=0, alpha=self.scale, out=out)

    def _dropped(self, x: Tensor, seed: int | None) -> Tensor:
        if seed is None:
            return x
        dropped = torch.empty_like(x)
        self.kernels.drop(x, self.dropout, seed, dropped)
        return dropped

    # --- backward -----------------------------------------------------------------------------------------------------

    def new_gradient(self, tokens: int) -> Tensor:
        """Return an empty buffer for a gradient g of the output and u beside it, [tokens, outputs + num_columns]."""
        return self.buffer.new_empty(tokens, self.outputs + self.num_columns)

    def narrow_gradient(self, joined: Tensor) -> None:
        """Write u = s g B beside g."""
        if self.num_columns:
            u = joined[:, self.outputs :]
            torch.addmm(u, joined[:, : self.outputs], self.matrix_b, beta=0, alpha=self.scale, out=u)

    def backward(self, joined: Tensor, seed: int | None) -> Tensor:
        """Map g with u beside it to the gradient of x, [tokens, inputs].

        What was dropped on the way to the adapter gets no gradient from it, so with dropout the two parts are two
        products and another pass.
        """
        if seed is None or not self.num_columns:
            return joined @ self.buffer[:, : self.inputs]
        gradient = joined[:, : self.outputs] @ self.buffer[: self.outputs, : self.inputs]
        through_adapter = joined[:, self.outputs :] @ self.matrix_a
        self.kernels.add_dropped(gradient, through_adapter, self.dropout, seed)
        return gradient

    def add_gradients(
        self, joined: Tensor, x: Tensor, narrow: Tensor, adapters: Mapping[LoraTarget, LowRank], seed: int | None
    ) -> None:
        """Add to the gradients of A and B.

        Args:
            joined: g with u beside it, [tokens, outputs + num_columns].
            x: [tokens, inputs].
            narrow: t, [tokens, num_columns].
            adapters: of the group; their `grad` is added to.
            seed: of the forward pass.
        """
        self.add_gradients_of_a(joined, x, adapters, seed)
        self.add_gradients_of_b(joined, narrow, adapters)

    def add_gradients_of_a(
        self, joined: Tensor, x: Tensor, adapters: Mapping[LoraTarget, LowRank], seed: int | None
    ) -> None:
        """Add u' x to the gradients of A."""
        if self.slots:
            product = wide_product(joined[:, self.outputs :].T, self._dropped(x, seed))
            for target, slot in self.slots.items():
                gradient_of(adapters[target].lora_a).add_(product[slot.ranks])

    def add_gradients_of_b(self, joined: Tensor, narrow: Tensor, adapters: Mapping[LoraTarget, LowRank]) -> None:
        """Add g' t to the gradients of B."""
        if self.slots:
            product = wide_product(joined[:, : self.outputs].T, narrow)
            for target, slot in self.slots.items():
                gradient_of(adapters[target].lora_b).add_(product[slot.outputs, slot.ranks])


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return a product in fp32, in which gradients add up, whatever the format of its factors."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    wide = torch.promote_types(left.dtype, torch.float32)
    return left.to(wide) @ right.to(wide)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Return where the gradient of a parameter adds up; zeros where nothing has yet."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
