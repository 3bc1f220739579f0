"""Small checkpoints, and a disk that is full."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune_trainer.checkpoint.content import Checkpoint, Progress

SETTINGS = {"lora.rank": 4, "lora.targets": ["q_proj"], "training.seed": 0}
PROGRESS = Progress(40, tokens=1000, seconds=2.5, first_loss=3.0, recent_losses=(3.0, 2.5))


def checkpoint_of(step: int, **changes: Any) -> Checkpoint:
    content: dict[str, Any] = {
        "progress": Progress(step, tokens=1000, seconds=2.5, first_loss=3.0, recent_losses=(3.0, 2.5)),
        "settings": SETTINGS,
        "adapter": {"a": torch.arange(6.0).reshape(2, 3)},
        "adapter_config": {"r": 4},
        "optimizer": {"a.exp_avg": torch.ones(2, 3)},
        "time": "2026-11-23T08:00:00Z",
    }
    return Checkpoint(**(content | changes))


@contextmanager
def no_file_over(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to write more, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
