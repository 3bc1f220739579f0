"""What a fused step needs of the frozen weights of layers that read the same input, whatever they are kept as."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

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

    @abstractmethod
    def forward(self, joined: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W' + t B' + bias, [tokens, outputs], of x and t in one buffer, [tokens, inputs + columns]."""

    @abstractmethod
    def forward_apart(self, x: Tensor, narrow: Tensor) -> Tensor:
        """Return x W' + t B' of x and t that lie apart."""

    @abstractmethod
    def backward(self, joined: Tensor) -> Tensor:
        """Return g W + u A, [tokens, inputs], of g and u in one buffer, [tokens, outputs + columns]."""

    @abstractmethod
    def backward_frozen(self, gradient: Tensor) -> Tensor:
        """Return g W."""


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
