"""What is refused before a model is built."""

import pytest
import torch

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.trainable import refuse_fp8_without_tensor_cores

GPU = torch.device("cuda", 0)


@pytest.fixture
def a100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")


@pytest.mark.usefixtures("a100")
def test_fp8_on_a_gpu_that_cannot_multiply_it_is_refused_with_what_to_set() -> None:
    with pytest.raises(TrainerError, match=r"NVIDIA A100 has 8\.0: set training\.precision to bf16") as error:
        refuse_fp8_without_tensor_cores("fp8-fast", GPU)
    assert error.value.reason is Reason.INVALID_SPEC


@pytest.mark.usefixtures("a100")
@pytest.mark.parametrize("precision", ["bf16", "fp32", "nf4"])
def test_other_precisions_are_not(precision: str) -> None:
    refuse_fp8_without_tensor_cores(precision, GPU)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_newer_gpus_take_fp8(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    refuse_fp8_without_tensor_cores("fp8", GPU)


def test_fp8_on_a_cpu_is_not_refused() -> None:
    refuse_fp8_without_tensor_cores("fp8", torch.device("cpu"))
