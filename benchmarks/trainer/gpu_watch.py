"""The power, the clock and the temperature that a GPU holds while it is measured."""

import statistics
import threading

import pynvml


class GpuWatch:
    """Reads power and clock of the GPU ten times a second."""

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
        while not self._ended.wait(0.1):
            self._samples.append(
                (
                    pynvml.nvmlDeviceGetPowerUsage(self._gpu) / 1000,
                    pynvml.nvmlDeviceGetClockInfo(self._gpu, pynvml.NVML_CLOCK_SM),
                    pynvml.nvmlDeviceGetTemperature(self._gpu, pynvml.NVML_TEMPERATURE_GPU),
                )
            )

    def means(self) -> dict[str, int]:
        """Return the means of the second half, as the GPU is warm by then."""
        late = self._samples[len(self._samples) // 2 :] or [(0.0, 0.0, 0.0)]
        names = ("power_watts", "clock_mhz", "temperature_celsius")
        return {
            name: round(statistics.mean(values)) for name, values in zip(names, zip(*late, strict=True), strict=True)
        }
