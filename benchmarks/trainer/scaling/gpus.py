"""What GPUs are seen doing while cases run on them."""

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml


class Gpu:
    """What one GPU was seen doing."""

    def __init__(self) -> None:
        self.memory_bytes = 0
        self.watts: list[float] = []
        self.clocks: list[int] = []

    def look(self, index: int) -> None:
        """Look once."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self.memory_bytes = max(self.memory_bytes, pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        if pynvml.nvmlDeviceGetUtilizationRates(handle).gpu > 50:
            self.watts.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
            self.clocks.append(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))

    def figures(self) -> dict[str, float]:
        """Return the peak of the memory in use, and medians while it was busy."""
        return {
            "gib": round(self.memory_bytes / 2**30, 1),
            "watts": round(statistics.median(self.watts)) if self.watts else 0,
            "mhz": statistics.median(self.clocks) if self.clocks else 0,
        }


@contextmanager
def watch_gpus(on_cpu: bool) -> Iterator[dict[int, Gpu]]:
    """Look at all GPUs four times a second meanwhile."""
    if on_cpu:
        yield {}
        return
    pynvml.nvmlInit()
    seen = {index: Gpu() for index in range(pynvml.nvmlDeviceGetCount())}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            for index, gpu in seen.items():
                gpu.look(index)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
