"""The Triton kernels on a processor: Triton's interpreter runs them with NumPy, slowly and step by step."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def on_gpu() -> Iterator[ModuleType]:
    """The GPU's kernels, interpreted.

    NB: Triton reads the variable when a kernel is defined, so the module is imported while it is set, and forgotten
    afterwards.
    """
    name = "finetune_trainer.kernels.on_gpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        sys.modules.pop(name, None)
        yield importlib.import_module(name)
    sys.modules.pop(name, None)
