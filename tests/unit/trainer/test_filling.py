"""Weights on their way from a checkpoint's files into a model."""

import pytest
import torch

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.filling import Destination, fill_weights


def places() -> dict[str, torch.Tensor]:
    return {"norm.scale": torch.zeros(4), "output.weight": torch.zeros(3, 4, dtype=torch.bfloat16)}


def fill(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    filled = places()
    fill_weights({name: Destination.of(place) for name, place in filled.items()}, found.items())
    return filled


def test_each_weight_is_copied_to_its_place_and_rounded_to_its_format() -> None:
    filled = fill({"output.weight": torch.full((3, 4), 1.001), "norm.scale": torch.arange(4.0)})
    assert filled["norm.scale"].tolist() == [0, 1, 2, 3]
    assert filled["output.weight"].unique().tolist() == [1.0]


WRONG: dict[str, tuple[dict[str, torch.Tensor], Reason, str]] = {
    "a weight is missing": (
        {"norm.scale": torch.zeros(4)},
        Reason.MODEL_UNSUPPORTED,
        "1 weights of the model of config.json are in no safetensors file, output.weight for one",
    ),
    "a weight has another shape": (
        {"norm.scale": torch.zeros(5)},
        Reason.MODEL_UNSUPPORTED,
        r"weight norm.scale has shape \[5\], but the model of config.json has \[4\]",
    ),
    "a weight belongs nowhere": (
        {"classifier.weight": torch.zeros(5)},
        Reason.MODEL_UNSUPPORTED,
        "weight classifier.weight .* has no such weight",
    ),
    "a weight holds NaN": (
        {"norm.scale": torch.tensor([0, 1, float("nan"), 0]), "output.weight": torch.zeros(3, 4)},
        Reason.MODEL_UNAVAILABLE,
        "1 weights hold NaN or infinity, norm.scale for one: the model's files are damaged",
    ),
    "a number is too large for its format": (
        {"norm.scale": torch.zeros(4), "output.weight": torch.full((3, 4), 3.4e38)},
        Reason.MODEL_UNAVAILABLE,
        "output.weight for one: .* set training.precision: fp32",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_not_the_models_are_refused_by_name(case: str) -> None:
    found, reason, message = WRONG[case]
    with pytest.raises(TrainerError, match=message) as error:
        fill(found)
    assert error.value.reason is reason
