"""The operator's own Prometheus metrics, in a registry of their own."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_RECONCILE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# From a warm node to a day in a queue.
_WAIT_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)


class Metrics:
    """What the operator counts; labels are bounded, no job is named."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconcile_seconds = Histogram(
            "finetune_operator_reconcile_duration_seconds",
            "Time to look at one job and take its next step.",
            buckets=_RECONCILE_SECONDS,
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "finetune_operator_reconcile_errors_total",
            "Looks at a job that failed and were tried again.",
            registry=self.registry,
        )
        self.api_requests = Counter(
            "finetune_operator_api_requests_total",
            "Requests to the API server, by verb, resource and status code; code 0 had no answer.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.events = Counter(
            "finetune_operator_events_total",
            "Events posted about jobs, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.attempts = Counter(
            "finetune_operator_attempts_total",
            "Attempts that ended, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.jobs_succeeded = Counter(
            "finetune_operator_jobs_succeeded_total", "Jobs that came to a good end.", registry=self.registry
        )
        self.jobs_failed = Counter(
            "finetune_operator_jobs_failed_total",
            "Jobs that failed for good, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "finetune_operator_attempt_queue_seconds",
            "Time from the making of an attempt's pods until all of them ran.",
            buckets=_WAIT_SECONDS,
            registry=self.registry,
        )
        self.start_seconds = Histogram(
            "finetune_operator_attempt_start_seconds",
            "Time from when all pods of an attempt ran until its first step began.",
            buckets=_WAIT_SECONDS,
            registry=self.registry,
        )
        self.gpu_seconds = Counter(
            "finetune_operator_gpu_seconds_total",
            "GPU-seconds of training stages by what became of them, added when it is known: queued, starting, "
            "productive, lost. Steps that a damaged checkpoint took away again count as both of the last.",
            ("kind",),
            registry=self.registry,
        )
        self.cost = Counter(
            "finetune_operator_cost_total",
            "What jobs have cost by what became of it, added when it is charged: starting, productive, lost, storage. "
            "Steps that a damaged checkpoint took away again count as productive and as lost.",
            ("kind", "currency"),
            registry=self.registry,
        )
        self.ready = Gauge(
            "finetune_operator_ready", "1 when jobs are being worked on, 0 while starting.", registry=self.registry
        )

    def expect(self, failures: Iterable[str], good_endings: Iterable[str], kinds: Iterable[str]) -> None:
        """Begin to count at zero: Prometheus sees no increase in a series that begins at one.

        Args:
            failures: reasons for which attempts end and jobs fail.
            good_endings: reasons for which attempts end and no job fails.
            kinds: of GPU-seconds.
        """
        for reason in failures:
            self.attempts.labels(reason)
            self.jobs_failed.labels(reason)
        for reason in good_endings:
            self.attempts.labels(reason)
        for kind in kinds:
            self.gpu_seconds.labels(kind)

    def watch_queue(self, waiting: Callable[[], int], working: Callable[[], int]) -> None:
        """Report how many jobs wait for their turn and how many are being worked on, whenever metrics are read."""
        Gauge("finetune_operator_queue_depth", "Jobs that wait for their turn.", registry=self.registry).set_function(
            waiting
        )
        Gauge("finetune_operator_queue_working", "Jobs that are being worked on.", registry=self.registry).set_function(
            working
        )

    def watch_phases(self, phases: Callable[[], Iterable[str]]) -> None:
        """Report how many jobs are in each phase, whenever metrics are read."""
        self.registry.register(_JobsByPhase(phases))

    def watch_storage(self, num_short: Callable[[], int]) -> None:
        """Report how many jobs will run out of room, whenever metrics are read."""
        Gauge(
            "finetune_operator_storage_pressure_jobs",
            "Jobs whose filesystem will be full before they are done, as last heard.",
            registry=self.registry,
        ).set_function(num_short)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _JobsByPhase(Collector):
    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("finetune_operator_jobs", "FineTuneJobs by phase.", labels=["phase"])
        for phase, count in sorted(Tally(self._phases()).items()):
            family.add_metric([phase], count)
        return [family]
