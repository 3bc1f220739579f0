"""What a fused training step does between its matrix products, each in one pass over memory.

Two modules have the same functions: `on_gpu` in Triton, `plain` in PyTorch, for processors and as what the other is
measured against. Matrices are row-major and may be columns of a wider buffer: neighbours in a row lie side by side, the
distance between rows is free. That lets a kernel write straight into the buffer of the next matrix product.
"""

from types import ModuleType

import torch


def kernels_for(device: torch.device) -> ModuleType:
    """Return the kernels for a device. Triton is imported only where it can run: its wheel exists for Linux alone."""
    if device.type == "cuda":
        from finetune_trainer.kernels import on_gpu

        return on_gpu
    from finetune_trainer.kernels import plain

    return plain
