"""Adapters that PEFT itself makes and reads: the independent judge of those that we write and read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, PeftModel, get_peft_model


@contextmanager
def without_torchao() -> Iterator[None]:
    """NB: this PEFT raises where it finds a torchao older than 0.16; torchtune 0.6.1 imports with none newer than 0.15.

    Its torchao half is for quantised base models, which have no part in this.
    """
    with mock.patch("peft.tuners.lora.torchao.is_torchao_available", return_value=False):
        yield


def write_random_adapter(model: torch.nn.Module, directory: Path, **settings: Any) -> PeftModel:
    """Write an adapter of random matrices, and return the model with it."""
    defaults = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    with without_torchao():
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(defaults | settings)))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    tuned.save_pretrained(directory)
    return tuned.eval()


def with_adapter(model: torch.nn.Module, directory: Path) -> PeftModel:
    """Return a model with the adapter of a directory, as PEFT reads it."""
    with without_torchao():
        return PeftModel.from_pretrained(model, directory).eval()
