"""What a fused step needs of the frozen weights of layers that read the same input, whatever they are kept as."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from finetune_trainer.kernels.formats import RoundedRows

# Pairs of a place and the fp32 matrix whose values go there before each step.
Places = list[tuple[Tensor, Tensor]]
# Returns zeros of a shape and a format.
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


@dataclass(frozen=True)
class GroupSize:
    """The size of a group's weight W [outputs, inputs] and of its adapters."""

    inputs: int
    outputs: int
    ranks: int  # of all adapters together
    columns: int  # ranks rounded up; A is [columns, inputs] and B [outputs, columns]


class Operand(NamedTuple):
    """The left factor of a product, with the narrow factor of its adapters: x and t, or g and u.

    Attributes:
        joined: x beside t, [tokens, inputs + columns], or g beside u, [tokens, outputs + columns].
        rounded: x or g once more, in fp8, where the kernel that computes it writes it so; else the product rounds it if
            it has to.
    """

    joined: Tensor
    rounded: RoundedRows | None = None

    def of_tokens(self, tokens: slice) -> "Operand":
        """Return the rows of some tokens."""
        return Operand(self.joined[tokens], None if self.rounded is None else self.rounded.of_tokens(tokens))


class FrozenWeight(ABC):
    """The weight W of a group, and the rounded adapters A and B that take part in its products.

    An input x has t = s x A' beside it in one buffer, a gradient g has u = s g B beside it; both are made by the layer.
    """

    def __init__(self, size: GroupSize) -> None:
        self.size = size

    @abstractmethod
    def staging(self) -> Tensor:
        """Return where W is written before `load`, [outputs, inputs] in the format of the products."""

    @abstractmethod
    def load(self, staged: Tensor) -> None:
        """Take over what was written to `staging`."""

    @property
    @abstractmethod
    def matrix_a(self) -> Tensor:
        """The A matrices one above the other, [columns, inputs]."""

    @property
    @abstractmethod
    def matrix_b(self) -> Tensor:
        """The B matrices on a diagonal, [outputs, columns]."""

    def new_rounded_input(self, tokens: int) -> RoundedRows | None:  # noqa: ARG002 (products in fp8 mind)
        """Return where x goes in fp8, if the forward pass takes it so."""
        return None

    def new_rounded_gradient(self, tokens: int) -> RoundedRows | None:  # noqa: ARG002
        """Return where g goes in fp8, if the backward pass takes it so."""
        return None

    @abstractmethod
    def forward(self, operand: Operand, bias: Tensor | None) -> Tensor:
        """Return x W' + t B' + bias, [tokens, outputs]."""

    @abstractmethod
    def forward_apart(self, x: Tensor, narrow: Tensor) -> Tensor:
        """Return x W' + t B' of x and t that lie apart."""

    @abstractmethod
    def backward(self, operand: Operand) -> Tensor:
        """Return g W + u A, [tokens, inputs]."""

    @abstractmethod
    def backward_frozen(self, operand: Operand) -> Tensor:
        """Return g W, whatever u is."""


class FrozenFormat(ABC):
    """A way to keep frozen weights.

    Args:
        dtype: of activations and of products.
        device: to hold the weights.

    Attributes:
        allocate: gives weights the memory for what is large and never changes.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.allocate: Allocate = lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=device)

    def in_memory(self, allocate: Allocate) -> Self:
        """Return this format with other memory; what weights share besides, they go on sharing."""
        other = copy(self)
        other.allocate = allocate
        return other

    def of_layer(self, number: int, num_layers: int) -> "FrozenFormat":  # noqa: ARG002 (one format minds)
        """Return what a layer of a model is kept as."""
        return self

    @abstractmethod
    def make_weight(self, size: GroupSize) -> FrozenWeight:
        """Return a weight without values; the memory that it keeps is taken at once."""

    @abstractmethod
    def make_refresh(
        self, weights: Sequence[FrozenWeight], places: Callable[[FrozenWeight], Places]
    ) -> Callable[[], None]:
        """Return what brings the adapters' values to the products; it is called before each step.

        Args:
            weights: of the whole model.
            places: returns where the values of a weight's adapters go, views of its `matrix_a` and `matrix_b`.
        """
