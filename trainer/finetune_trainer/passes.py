"""Forward and backward over a micro-batch: what it adds to the gradients, and its part of the loss."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from finetune_trainer.data.batch import Batch


class Passes(ABC):
    """Adds up the gradients of micro-batches."""

    @abstractmethod
    def add_gradients(self, batch: Batch, num_targets: int) -> torch.Tensor:
        """Add a micro-batch's part of the gradients to the parameters' `grad`, and return its part of the mean loss.

        Args:
            batch: on the model's device.
            num_targets: of the whole global batch, which the mean is over.
        """


class LaunchedPasses(Passes):
    """Each operation is launched by the program.

    Args:
        model: plain or fused; returns the summed loss of a batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def add_gradients(self, batch: Batch, num_targets: int) -> torch.Tensor:
        """Add gradients by autograd."""
        loss: torch.Tensor = self._model(batch) / num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
