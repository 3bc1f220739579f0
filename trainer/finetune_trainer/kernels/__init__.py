"""What a fused training step does between its matrix products, each in one pass over memory.

Two modules have the same functions: `on_gpu` in Triton, `plain` in PyTorch, for processors and as what the other is
measured against. Matrices are row-major and may be columns of a wider buffer: neighbours in a row lie side by side, the
distance between rows is free. That lets a kernel write straight into the buffer of the next matrix product.
"""

from functools import cache
from types import ModuleType, SimpleNamespace

import torch

from finetune_trainer.kernels import plain
from finetune_trainer.kernels.fallback import maker_with_fallback, remember, with_fallback

Kernels = ModuleType | SimpleNamespace


def kernels_for(device: torch.device) -> Kernels:
    """Return the kernels for a device."""
    return _kernels_on_gpu() if device.type == "cuda" else plain


@cache
def _kernels_on_gpu() -> Kernels:
    """Import Triton only where it can run: its wheel exists for Linux alone."""
    try:
        from finetune_trainer.kernels import on_gpu
    except ImportError as error:
        remember("all", error)
        return plain
    kernels = SimpleNamespace()
    for name in on_gpu.__all__:
        wrap = maker_with_fallback if name.startswith("make_") else with_fallback
        setattr(kernels, name, wrap(name, getattr(on_gpu, name), getattr(plain, name)))
    return kernels
