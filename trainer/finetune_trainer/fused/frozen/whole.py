"""Frozen weights in the number format of the products, in one buffer with their adapters.

A buffer has [outputs + p, inputs + p] numbers, p columns of adapters:

    W  B
    A  0

With the input x beside t = s x A' the output x W' + t B' is one product, as is, with the incoming gradient g beside
u = s g B, the gradient g W + u A of the input. An adapter then adds a few columns to a large product in place of passes
of its own over its outputs: 9 % of a step on an H100, see docs/LOG.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.fused.frozen.weight import Allocate, FrozenFormat, FrozenWeight, GroupSize, Operand, Places
from finetune_trainer.kernels import kernels_for


class JoinedWeight(FrozenWeight):
    """A weight that is, or for the time being lies, in one buffer with its adapters."""

    def buffer(self) -> Tensor:
        """Return the buffer, [outputs + columns, inputs + columns]."""
        raise NotImplementedError

    @property
    def matrix_a(self) -> Tensor:
        """The rows of A in the buffer."""
        return self.buffer()[self.size.outputs :, : self.size.inputs]

    @property
    def matrix_b(self) -> Tensor:
        """The columns of B in the buffer."""
        return self.buffer()[: self.size.outputs, self.size.inputs :]

    def forward(self, operand: Operand, bias: Tensor | None) -> Tensor:
        """Return x W' + t B' + bias in one product."""
        weight = self.buffer()[: self.size.outputs].T
        return operand.joined @ weight if bias is None else torch.addmm(bias, operand.joined, weight)

    def forward_apart(self, x: Tensor, narrow: Tensor) -> Tensor:
        """Return x W' + t B' in two products, the adapter's first.

        Added to a product that is rounded already, what an adapter has learnt in its first steps would be less than
        half of the last bit: 90 % of it would be lost where B is 1e-5. So the large product is added to the small one.
        """
        if not self.size.columns:
            return x @ self._frozen().T
        output = narrow @ self.matrix_b.T
        return output.addmm_(x, self._frozen().T)

    def backward(self, operand: Operand) -> Tensor:
        """Return g W + u A in one product."""
        return operand.joined @ self.buffer()[:, : self.size.inputs]

    def backward_frozen(self, operand: Operand) -> Tensor:
        """Return g W, whatever u is."""
        return operand.joined[:, : self.size.outputs] @ self._frozen()

    def _frozen(self) -> Tensor:
        return self.buffer()[: self.size.outputs, : self.size.inputs]


class WholeWeight(JoinedWeight):
    """A weight that stays in its buffer."""

    def __init__(self, size: GroupSize, dtype: torch.dtype, allocate: Allocate) -> None:
        super().__init__(size)
        # Zeros, as the columns that rounding up has left are multiplied with.
        self._buffer = allocate((size.outputs + size.columns, size.inputs + size.columns), dtype)

    def buffer(self) -> Tensor:
        """Return the buffer."""
        return self._buffer

    def staging(self) -> Tensor:
        """Return the place in the buffer itself."""
        return self._frozen()

    def load(self, staged: Tensor) -> None:
        """Do nothing: the weight is there."""
        assert staged.data_ptr() == self._buffer.data_ptr()


class Whole(FrozenFormat):
    """Weights in the format of the products: bf16 or fp32."""

    def make_weight(self, size: GroupSize) -> FrozenWeight:
        """Return a weight without values."""
        return WholeWeight(size, self.dtype, self.allocate)

    def make_refresh(
        self, weights: Sequence[FrozenWeight], places: Callable[[FrozenWeight], Places]
    ) -> Callable[[], None]:
        """Return what copies the adapters of all weights in one launch."""
        copy: Callable[[], None] = kernels_for(self.device).make_copier(
            [pair for weight in weights for pair in places(weight)]
        )
        return copy
