"""Where the weights of a checkpoint go."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True)
class Destination:
    """The place of one weight in a model.

    Attributes:
        shape: of the weight.
        fill: copies the weight there, and returns the place as the number format of the model has it.
    """

    shape: torch.Size
    fill: Callable[[Tensor], Tensor]

    @staticmethod
    def of(place: Tensor) -> "Destination":
        """Return the destination that a tensor is."""
        return Destination(place.shape, place.copy_)


@torch.no_grad()
def fill_weights(destinations: Mapping[str, Destination], weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy each weight to its place.

    Each process reads the files itself: those of a node share the page cache, and nothing is sent. Where layers are
    spread over processes, the weights of one have to come one after another.

    Raises:
        TrainerError: MODEL_UNSUPPORTED when weights are missing, have another shape, or belong nowhere,
            MODEL_UNAVAILABLE when one of them holds something that is no finite number.
    """
    missing = dict(destinations)
    are_finite = {}
    for name, weight in weights:
        place = missing.pop(name, None)
        if place is None or place.shape != weight.shape:
            expected = "no such weight" if place is None else f"{list(place.shape)}"
            raise TrainerError(
                Reason.MODEL_UNSUPPORTED,
                f"weight {name} has shape {list(weight.shape)}, but the model of config.json has {expected}",
            )
        # Looked at when all weights are there: a GPU is not waited for with each of them.
        are_finite[name] = _is_finite(place.fill(weight))
    if missing:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{len(missing)} weights of the model of config.json are in no safetensors file, {min(missing)} for one",
        )
    damaged = [name for name, is_finite in are_finite.items() if not is_finite]
    if damaged:
        raise TrainerError(
            Reason.MODEL_UNAVAILABLE,
            f"{len(damaged)} weights hold NaN or infinity, {damaged[0]} for one: the model's files are damaged, or its "
            "numbers are too large for the precision; copy the model again, or set training.precision: fp32",
        )


def _is_finite(filled: Tensor) -> Tensor:
    """Say whether all numbers are finite, as a scalar on their device; nothing of their size is made for it."""
    return torch.stack(torch.aminmax(filled)).isfinite().all()
