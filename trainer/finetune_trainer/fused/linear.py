"""Linear layers that read the same input, with their adapters, as one matrix product.

The input x lies beside t = s x A' in one buffer, the incoming gradient g beside u = s g B. What the frozen weights are
kept as, and how their product takes those columns along, `frozen` knows; here is what an adapter needs besides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Lora, LoraTarget
from finetune_trainer.filling import Destination
from finetune_trainer.fused.frozen.weight import FrozenFormat, GroupSize, Operand, Places
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
    """Where an adapter lies among those of its group."""

    outputs: slice  # rows of W and B
    ranks: slice  # rows of A, columns of B


class Drop(NamedTuple):
    """Which values of an input the adapters do not see, see `kernels.plain.drop`."""

    seed: Tensor  # int64 scalar on the device of the values
    first_row: int = 0


class FusedLinear:
    """The linear layers of a block that read the same input.

    Args:
        targets: of the group, in the order of their outputs.
        shape: of the model.
        lora: the adapter; a layer that is no target of it has none.
        frozen: what weights are kept as.
        has_bias: the layers have one.
    """

    def __init__(
        self,
        targets: Sequence[LoraTarget],
        shape: ModelShape,
        lora: Lora,
        frozen: FrozenFormat,
        has_bias: bool = False,
    ) -> None:
        sizes = [shape.linears[target] for target in targets]
        self.inputs, self.outputs = sizes[0][0], sum(outputs for _, outputs in sizes)
        self.scale, self.dropout = lora.alpha / lora.rank, lora.dropout
        self.kernels = kernels_for(frozen.device)
        self._dtype, self._device = frozen.dtype, frozen.device
        adapted = [target for target in targets if target in lora.targets]
        ranks = len(adapted) * lora.rank
        self.num_columns = -(-ranks // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        self.weight = frozen.make_weight(GroupSize(self.inputs, self.outputs, ranks, self.num_columns))
        self.bias = torch.zeros(self.outputs, dtype=frozen.dtype, device=frozen.device) if has_bias else None
        self.slots: dict[LoraTarget, Slot] = {}
        self._rows: dict[LoraTarget, slice] = {}
        self._staged: Tensor | None = None
        self._awaited = set(targets)
        start = 0
        for target, (_, outputs) in zip(targets, sizes, strict=True):
            own = slice(start, start + outputs)
            self._rows[target] = own
            if target in adapted:
                first = adapted.index(target) * lora.rank
                self.slots[target] = Slot(own, slice(first, first + lora.rank))
            start += outputs

    def destinations(self) -> dict[LoraTarget, Destination]:
        """Return where the weights of the layers go. They come one by one, and are rounded when all are there."""
        return {
            target: Destination(torch.Size((rows.stop - rows.start, self.inputs)), self._stage(target))
            for target, rows in self._rows.items()
        }

    def biases(self) -> dict[LoraTarget, Destination]:
        """Return where the biases go."""
        bias = self.bias
        return {} if bias is None else {target: Destination.of(bias[rows]) for target, rows in self._rows.items()}

    def _stage(self, target: LoraTarget) -> Callable[[Tensor], Tensor]:
        def fill(weight: Tensor) -> Tensor:
            if self._staged is None:
                self._staged, self._awaited = self.weight.staging(), set(self._rows)
            place = self._staged[self._rows[target]].copy_(weight)
            self._awaited.discard(target)
            if not self._awaited:
                self.weight.load(self._staged)
                self._staged = None
            return place

        return fill

    def places(self, adapters: Mapping[LoraTarget, LowRank]) -> Places:
        """Return where the values of each adapter go: pairs of a place among the columns and the values."""
        return [
            pair
            for target, slot in self.slots.items()
            for pair in (
                (self.weight.matrix_a[slot.ranks], adapters[target].lora_a),
                (self.weight.matrix_b[slot.outputs, slot.ranks], adapters[target].lora_b),
            )
        ]

    # --- forward ------------------------------------------------------------------------------------------------------

    def new_input(self, tokens: int) -> Operand:
        """Return empty buffers for the input x and the narrow product t beside it, [tokens, inputs + num_columns]."""
        joined = torch.empty(tokens, self.inputs + self.num_columns, dtype=self._dtype, device=self._device)
        return Operand(joined, self.weight.new_rounded_input(tokens))

    def narrow(self, operand: Operand, drop: Drop | None) -> Tensor:
        """Write t = s x A' beside x, and return a copy of it, [tokens, num_columns].

        Args:
            operand: of `new_input`, x written.
            drop: the dropout of x; None drops nothing.
        """
        t = operand.joined[:, self.inputs :]
        self._narrow(operand.joined[:, : self.inputs], t, drop)
        return t.clone()

    def forward(self, operand: Operand) -> Tensor:
        """Map x with t beside it to the output, [tokens, outputs]."""
        return self.weight.forward(operand, self.bias)

    def forward_apart(self, x: Tensor, drop: Drop | None) -> tuple[Tensor, Tensor]:
        """Return the output and t for an x that lies elsewhere; it may take another pass over the output."""
        t = x.new_empty(len(x), self.num_columns)
        self._narrow(x, t, drop)
        return self.weight.forward_apart(x, t), t

    def _narrow(self, x: Tensor, out: Tensor, drop: Drop | None) -> None:
        if self.num_columns:
            torch.addmm(out, self._dropped(x, drop), self.weight.matrix_a.T, beta=0, alpha=self.scale, out=out)

    def _dropped(self, x: Tensor, drop: Drop | None) -> Tensor:
        if drop is None:
            return x
        dropped = torch.empty_like(x)
        self.kernels.drop(x, self.dropout, drop.seed, drop.first_row, dropped)
        return dropped

    # --- backward -----------------------------------------------------------------------------------------------------

    def new_gradient(self, tokens: int, writer_rounds: bool) -> Operand:
        """Return empty buffers for a gradient g of the output and u beside it, [tokens, outputs + num_columns].

        Args:
            tokens: rows.
            writer_rounds: the kernel that writes g can write it in fp8 as well.
        """
        joined = torch.empty(tokens, self.outputs + self.num_columns, dtype=self._dtype, device=self._device)
        return Operand(joined, self.weight.new_rounded_gradient(tokens) if writer_rounds else None)

    def narrow_gradient(self, operand: Operand) -> None:
        """Write u = s g B beside g."""
        if self.num_columns:
            g, u = operand.joined[:, : self.outputs], operand.joined[:, self.outputs :]
            torch.addmm(u, g, self.weight.matrix_b, beta=0, alpha=self.scale, out=u)

    def backward(self, operand: Operand, drop: Drop | None) -> Tensor:
        """Map g with u beside it to the gradient of x, [tokens, inputs].

        What was dropped on the way to the adapter gets no gradient from it, so with dropout the two parts are two
        products and another pass.
        """
        if drop is None or not self.num_columns:
            return self.weight.backward(operand)
        gradient = self.weight.backward_frozen(operand)
        through_adapter = operand.joined[:, self.outputs :] @ self.weight.matrix_a
        self.kernels.add_dropped(gradient, through_adapter, self.dropout, drop.seed, drop.first_row)
        return gradient

    def add_gradients(
        self, operand: Operand, x: Tensor, narrow: Tensor, adapters: Mapping[LoraTarget, LowRank], drop: Drop | None
    ) -> None:
        """Add to the gradients of A and B.

        Args:
            operand: g with u beside it.
            x: [tokens, inputs].
            narrow: t, [tokens, num_columns].
            adapters: of the group; their `grad` is added to.
            drop: of the forward pass.
        """
        self.add_gradients_of_a(operand, x, adapters, drop)
        self.add_gradients_of_b(operand, narrow, adapters)

    def add_gradients_of_a(
        self, operand: Operand, x: Tensor, adapters: Mapping[LoraTarget, LowRank], drop: Drop | None
    ) -> None:
        """Add u' x to the gradients of A."""
        if self.slots:
            product = wide_product(operand.joined[:, self.outputs :].T, self._dropped(x, drop))
            for target, slot in self.slots.items():
                gradient_of(adapters[target].lora_a).add_(product[slot.ranks])

    def add_gradients_of_b(self, operand: Operand, narrow: Tensor, adapters: Mapping[LoraTarget, LowRank]) -> None:
        """Add g' t to the gradients of B."""
        if self.slots:
            product = wide_product(operand.joined[:, : self.outputs].T, narrow)
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
