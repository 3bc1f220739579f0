"""The power, the clock and the temperature that a GPU holds while it is measured."""

import statistics
import threading

import pynvml

_POWER_NOW = 186  # NVML_FI_DEV_POWER_INSTANT: nvmlDeviceGetPowerUsage is the mean of a second


class GpuWatch:
    """Reads power and clock of the GPU all the time.

    Args:
        every_seconds: how often.
        is_instant: power is that of the moment, for what takes less than seconds, and not the mean of a second.
    """

    def __init__(self, every_seconds: float = 0.1, is_instant: bool = False) -> None:
        self._every_seconds = every_seconds
        self._is_instant = is_instant

    def __enter__(self) -> "GpuWatch":
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._samples: list[tuple[float, float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_seconds):
            self._samples.append(
                (
                    self._milliwatts() / 1000,
                    pynvml.nvmlDeviceGetClockInfo(self._gpu, pynvml.NVML_CLOCK_SM),
                    pynvml.nvmlDeviceGetTemperature(self._gpu, pynvml.NVML_TEMPERATURE_GPU),
                )
            )

    def _milliwatts(self) -> int:
        now: int = pynvml.nvmlDeviceGetFieldValues(self._gpu, [_POWER_NOW])[0].value.uiVal if self._is_instant else 0
        usual: int = pynvml.nvmlDeviceGetPowerUsage(self._gpu)
        return now or usual  # a driver that does not know the field says 0

    def means(self) -> dict[str, int]:
        """Return the means of the second half, as the GPU is warm by then."""
        late = self._samples[len(self._samples) // 2 :] or [(0.0, 0.0, 0.0)]
        names = ("power_watts", "clock_mhz", "temperature_celsius")
        return {
            name: round(statistics.mean(values)) for name, values in zip(names, zip(*late, strict=True), strict=True)
        }
