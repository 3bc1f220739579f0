"""How fast a model answers, and in how much memory: this trainer's own generation, not a server's."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.inference.generate import Writing, stream, write_batch
from finetune_trainer.workbench.model import Model

SEED = 0


@dataclass(frozen=True)
class Speed:
    """What was measured at one batch size."""

    batch_size: int
    first_token_seconds: float  # from the prompts to the first token of each
    tokens_per_second: float  # all rows together, after the first token
    peak_memory_bytes: int


def measure_speed(model: Model, batch_size: int, prompt_tokens: int, new_tokens: int) -> Speed:
    """Time prompts of random tokens; nothing ends before `new_tokens`.

    Raises:
        torch.OutOfMemoryError: the batch does not fit the GPU's memory.
    """
    random = np.random.default_rng(SEED)
    size = (batch_size, prompt_tokens)
    prompts = list(random.integers(0, model.decoder.shape.vocab_size, size, dtype=np.int32))
    device = model.decoder.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    write_batch(model.decoder, prompts, Writing(frozenset(), 2, model.adapted))  # the first pass chooses kernels
    started = time.perf_counter()
    first, num_tokens = 0.0, 0
    with torch.inference_mode():
        for _ in stream(model.decoder, prompts, Writing(frozenset(), new_tokens, model.adapted)):
            first = first or time.perf_counter() - started
            num_tokens += 1
    rest = time.perf_counter() - started - first
    return Speed(batch_size, first, (num_tokens - batch_size) / rest, _peak_memory_bytes(device))


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_benchmark(
    model: Model, batch_sizes: Sequence[int], prompt_tokens: int, new_tokens: int, say: Callable[[str], None]
) -> None:
    """Measure each batch size and tell it as a row of a table."""
    device = model.decoder.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    number_format = str(model.decoder.dtype).removeprefix("torch.")
    say(f"{name}, {number_format}, torch {torch.__version__}, adapter {'on' if model.adapted else 'off'}")
    say(f"{prompt_tokens} tokens a prompt, {new_tokens} new ones")
    say(f"{'batch':>6}{'first token s':>15}{'tokens/s':>12}{'tokens/s a row':>16}{'peak GiB':>10}")
    for batch_size in batch_sizes:
        try:
            speed = measure_speed(model, batch_size, prompt_tokens, new_tokens)
        except torch.OutOfMemoryError:
            say(f"{batch_size:>6}  does not fit the GPU's memory")
            continue
        say(
            f"{batch_size:>6}{speed.first_token_seconds:>15.3f}{speed.tokens_per_second:>12.1f}"
            f"{speed.tokens_per_second / batch_size:>16.1f}{speed.peak_memory_bytes / (1 << 30):>10.2f}"
        )
