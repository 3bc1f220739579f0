"""What Prometheus sees of a training.

Values of the training are set by the loop when it has them anyway, those of the node are read when they are scraped, so
a scrape never waits for a GPU, nor a GPU for a scrape.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pynvml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_trainer.clock import Times
from finetune_trainer.contract import instruments, series
from finetune_trainer.kernels.fallback import told_fallbacks

NETWORK_STATISTICS = Path("/proc/net/dev")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as it is logged and exported."""

    step: int  # steps done, this one included
    epoch: float  # epochs done, this step included
    loss: float  # mean over the targets of the global batch, before the update
    learning_rate: float
    gradient_norm: float  # before clipping
    tokens: int  # of all processes in this step
    tokens_per_second: float
    seconds: float
    compute_seconds: float  # of rank 0, as are the next three; see `clock`
    data_wait_seconds: float
    communication_seconds: float  # waiting for slower processes included
    checkpoint_seconds: float
    model_flops_utilization: float | None  # of all processes; None where it is not known what the GPU could do
    timestamp_seconds: float  # since 1970


class TrainingMetrics:
    """The series of global rank 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str) -> Gauge:
            return instruments.gauge(series.BY_NAME[name], registry)

        def counter(name: str) -> Counter:
            return instruments.counter(series.BY_NAME[name], registry)

        def histogram(name: str) -> Histogram:
            return instruments.histogram(series.BY_NAME[name], registry)

        self._loss = gauge(series.LOSS)
        self._learning_rate = gauge(series.LEARNING_RATE)
        self._gradient_norm = gauge(series.GRADIENT_NORM)
        self._step = gauge(series.STEP)
        self._steps_total = gauge(series.STEPS_TOTAL)
        self._epoch = gauge(series.EPOCH)
        self._tokens = counter(series.TOKENS_TOTAL)
        self._tokens_per_second = gauge(series.TOKENS_PER_SECOND)
        self._utilization: Gauge | None = None
        self._registry = registry
        self._timestamp = gauge(series.LAST_STEP_TIMESTAMP_SECONDS)
        self._data_wait = counter(series.DATA_WAIT_SECONDS_TOTAL)
        self._step_seconds = histogram(series.STEP_DURATION_SECONDS)
        self._checkpoint_seconds = histogram(series.CHECKPOINT_DURATION_SECONDS)
        self._checkpoint_step = gauge(series.CHECKPOINT_LAST_STEP)
        self._checkpoint_timestamp = gauge(series.CHECKPOINT_LAST_TIMESTAMP_SECONDS)
        self._checkpoint_interval = gauge(series.CHECKPOINT_INTERVAL_STEPS)
        self._attempt = gauge(series.ATTEMPT)

    def describe_attempt(self, number: int, checkpoint_interval_steps: int) -> None:
        """Tell which attempt this is, and how often it takes a checkpoint."""
        self._attempt.set(number)
        self._checkpoint_interval.set(checkpoint_interval_steps)

    def start(self, step: int, steps_total: int, timestamp_seconds: float) -> None:
        """Tell where the run starts: at 0, or at the step it was resumed from; the steps from then on can be lost."""
        self._step.set(step)
        self._steps_total.set(steps_total)
        self._checkpoint_step.set(step)
        self._checkpoint_timestamp.set(timestamp_seconds)

    def record_step(self, record: StepRecord) -> None:
        """Export a step."""
        self._loss.set(record.loss)
        self._learning_rate.set(record.learning_rate)
        self._gradient_norm.set(record.gradient_norm)
        self._epoch.set(record.epoch)
        self._tokens.inc(record.tokens)
        self._tokens_per_second.set(record.tokens_per_second)
        self._data_wait.inc(record.data_wait_seconds)
        self._set_utilization(record.model_flops_utilization)
        self._step_seconds.observe(record.seconds)
        self._timestamp.set(record.timestamp_seconds)
        self._step.set(record.step)

    def _set_utilization(self, ratio: float | None) -> None:
        """Export it where it is known; a series that is always 0 would look like a GPU that idles."""
        if ratio is None:
            return
        if self._utilization is None:
            definition = series.BY_NAME[series.MODEL_FLOPS_UTILIZATION_RATIO]
            self._utilization = instruments.gauge(definition, self._registry)
        self._utilization.set(ratio)

    def record_checkpoint(self, step: int, seconds: float, timestamp_seconds: float) -> None:
        """Export that a checkpoint was written, for how long the training stood still, and when it was taken."""
        self._checkpoint_step.set(step)
        self._checkpoint_timestamp.set(timestamp_seconds)
        self._checkpoint_seconds.observe(seconds)


class ProcessMetrics:
    """The series of each process of a node, told by the one that serves them.

    Args:
        registry: to serve them.
        first_rank: of this node.
        num_processes: of this node.
    """

    def __init__(self, registry: CollectorRegistry, first_rank: int, num_processes: int) -> None:
        self._ranks = range(first_rank, first_rank + num_processes)
        self._seconds = instruments.counter(series.BY_NAME[series.STEP_PHASE_SECONDS_TOTAL], registry)
        self.record_times([dict.fromkeys(series.Phase, 0.0)] * self._ranks.stop)

    def record_times(self, times_by_rank: Sequence[Times]) -> None:
        """Export what a step of each process of the gang went to; those of other nodes are passed over."""
        for local_rank, rank in enumerate(self._ranks):
            for phase, seconds in times_by_rank[rank].items():
                self._seconds.labels(str(local_rank), phase).inc(seconds)


class NodeCollector(Collector):
    """The series of a node: which it is, its network interfaces and its GPUs, read when they are scraped.

    Args:
        node_rank: number of the node in the gang, from 0.
        with_gpus: read utilisation and memory through NVML.
        peak_memory_bytes: returns the peak of this process' GPU memory, by GPU number.
    """

    def __init__(self, node_rank: int, with_gpus: bool, peak_memory_bytes: Callable[[], dict[int, int]]) -> None:
        self._node_rank = node_rank
        self._with_gpus = with_gpus
        self._peak_memory_bytes = peak_memory_bytes
        if with_gpus:
            pynvml.nvmlInit()

    def collect(self) -> Iterable[Metric]:
        """Read everything once."""
        info = _gauge(series.NODE_INFO)
        info.add_metric([str(self._node_rank)], 1)
        yield info
        yield from _network_series(NETWORK_STATISTICS.read_text(encoding="ascii"))
        fallbacks = _gauge(series.KERNEL_FALLBACKS)
        fallbacks.add_metric([], len(told_fallbacks()))
        yield fallbacks
        if self._with_gpus:
            yield from _gpu_series(self._peak_memory_bytes())


def _gauge(name: str) -> GaugeMetricFamily:
    return instruments.gauge_family(series.BY_NAME[name])


def _network_series(statistics: str) -> Iterator[Metric]:
    """Parse /proc/net/dev (https://man7.org/linux/man-pages/man5/proc_pid_net.5.html)."""
    received = instruments.counter_family(series.BY_NAME[series.NETWORK_RECEIVE_BYTES_TOTAL])
    transmitted = instruments.counter_family(series.BY_NAME[series.NETWORK_TRANSMIT_BYTES_TOTAL])
    for line in statistics.splitlines()[2:]:
        device, _, columns = line.partition(":")
        fields = columns.split()
        received.add_metric([device.strip()], float(fields[0]))
        transmitted.add_metric([device.strip()], float(fields[8]))
    yield received
    yield transmitted


def _gpu_series(peak_memory_bytes: dict[int, int]) -> Iterator[Metric]:
    utilization = _gauge(series.GPU_UTILIZATION_RATIO)
    used = _gauge(series.GPU_MEMORY_USED_BYTES)
    peak = _gauge(series.GPU_MEMORY_PEAK_BYTES)
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        # NB: a GPU in MIG mode has no utilisation, one without memory of its own no memory in use. A scrape that failed
        # for that would take the loss and the step with it.
        with suppress(pynvml.NVMLError):
            utilization.add_metric([str(index)], pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
        with suppress(pynvml.NVMLError):
            used.add_metric([str(index)], pynvml.nvmlDeviceGetMemoryInfo(gpu).used)
    for index, size in peak_memory_bytes.items():
        peak.add_metric([str(index)], size)
    yield utilization
    yield used
    yield peak
