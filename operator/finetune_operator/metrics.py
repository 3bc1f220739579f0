"""The operator's own Prometheus metrics, in a registry of their own.

docs/reference/metrics.md is written from the table of the series.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_trainer.contract.instruments import counter, gauge, gauge_family, histogram
from finetune_trainer.contract.series import Series, SeriesType

_RECONCILE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# From a warm node to a day in a queue.
_WAIT_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)


_GAUGE, _COUNTER, _HISTOGRAM = SeriesType.GAUGE, SeriesType.COUNTER, SeriesType.HISTOGRAM
_JOBS = Series("finetune_operator_jobs", _GAUGE, "FineTuneJobs by phase.", ("phase",))
_READY = Series(
    "finetune_operator_ready",
    _GAUGE,
    "1 when jobs are being worked on, 0 while the operator waits for the API server or the CRD.",
)
_RECONCILE_DURATION = Series(
    "finetune_operator_reconcile_duration_seconds",
    _HISTOGRAM,
    "Time to look at one job and take its next step.",
    buckets=_RECONCILE_SECONDS,
)
_RECONCILE_ERRORS = Series(
    "finetune_operator_reconcile_errors_total", _COUNTER, "Looks at a job that failed and were tried again."
)
_QUEUE_DEPTH = Series("finetune_operator_queue_depth", _GAUGE, "Jobs that wait for their turn.")
_QUEUE_WORKING = Series("finetune_operator_queue_working", _GAUGE, "Jobs that are being worked on.")
_API_REQUESTS = Series(
    "finetune_operator_api_requests_total",
    _COUNTER,
    "Requests to the API server, by verb, resource and status code; code 0 had no answer.",
    ("verb", "resource", "code"),
)
_EVENTS = Series("finetune_operator_events_total", _COUNTER, "Events posted about jobs, by reason.", ("reason",))
_ATTEMPTS = Series("finetune_operator_attempts_total", _COUNTER, "Attempts that ended, by reason.", ("reason",))
_JOBS_SUCCEEDED = Series("finetune_operator_jobs_succeeded_total", _COUNTER, "Jobs that came to a good end.")
_JOBS_FAILED = Series(
    "finetune_operator_jobs_failed_total", _COUNTER, "Jobs that failed for good, by reason.", ("reason",)
)
_ATTEMPT_QUEUE = Series(
    "finetune_operator_attempt_queue_seconds",
    _HISTOGRAM,
    "Time from the making of an attempt's pods until all of them ran.",
    buckets=_WAIT_SECONDS,
)
_ATTEMPT_START = Series(
    "finetune_operator_attempt_start_seconds",
    _HISTOGRAM,
    "Time from when all pods of an attempt ran until its first step began.",
    buckets=_WAIT_SECONDS,
)
_STORAGE_PRESSURE = Series(
    "finetune_operator_storage_pressure_jobs",
    _GAUGE,
    "Jobs whose filesystem will be full before they are done, as last heard.",
)
_GPU_SECONDS = Series(
    "finetune_operator_gpu_seconds_total",
    _COUNTER,
    "GPU-seconds of training stages by what became of them, added when it is known: queued, starting, "
    "productive, lost. Steps that a damaged checkpoint took away again count as both of the last.",
    ("kind",),
)
_COST = Series(
    "finetune_operator_cost_total",
    _COUNTER,
    "What the jobs of a namespace have cost by what became of it, added when it is charged: starting, productive, "
    "lost, storage; where prices are set. Steps that a damaged checkpoint took away again count as productive and as "
    "lost.",
    ("job_namespace", "kind", "currency"),
)
SERIES = (
    *(_JOBS, _READY, _RECONCILE_DURATION, _RECONCILE_ERRORS, _QUEUE_DEPTH, _QUEUE_WORKING, _API_REQUESTS, _EVENTS),
    *(_ATTEMPTS, _JOBS_SUCCEEDED, _JOBS_FAILED, _ATTEMPT_QUEUE, _ATTEMPT_START, _STORAGE_PRESSURE, _GPU_SECONDS, _COST),
)
_COST_KINDS = ("starting", "productive", "lost", "storage")


class Metrics:
    """What the operator counts; labels are bounded, no job is named."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconcile_seconds = histogram(_RECONCILE_DURATION, self.registry)
        self.reconcile_errors = counter(_RECONCILE_ERRORS, self.registry)
        self.api_requests = counter(_API_REQUESTS, self.registry)
        self.events = counter(_EVENTS, self.registry)
        self.attempts = counter(_ATTEMPTS, self.registry)
        self.jobs_succeeded = counter(_JOBS_SUCCEEDED, self.registry)
        self.jobs_failed = counter(_JOBS_FAILED, self.registry)
        self.queue_seconds = histogram(_ATTEMPT_QUEUE, self.registry)
        self.start_seconds = histogram(_ATTEMPT_START, self.registry)
        self.gpu_seconds = counter(_GPU_SECONDS, self.registry)
        self.cost = counter(_COST, self.registry)
        self.ready = gauge(_READY, self.registry)

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

    def charge(self, namespace: str, currency: str, amounts: Mapping[str, float]) -> None:
        """Add what a job has cost since it was last looked at, by kind; kinds that cost nothing yet begin at zero."""
        for kind in _COST_KINDS:
            self.cost.labels(namespace, kind, currency).inc(amounts.get(kind, 0.0))

    def watch_queue(self, waiting: Callable[[], int], working: Callable[[], int]) -> None:
        """Report how many jobs wait for their turn and how many are being worked on, whenever metrics are read."""
        gauge(_QUEUE_DEPTH, self.registry).set_function(waiting)
        gauge(_QUEUE_WORKING, self.registry).set_function(working)

    def watch_phases(self, phases: Callable[[], Iterable[str]]) -> None:
        """Report how many jobs are in each phase, whenever metrics are read."""
        self.registry.register(_JobsByPhase(phases))

    def watch_storage(self, num_short: Callable[[], int]) -> None:
        """Report how many jobs will run out of room, whenever metrics are read."""
        gauge(_STORAGE_PRESSURE, self.registry).set_function(num_short)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _JobsByPhase(Collector):
    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = gauge_family(_JOBS)
        for phase, count in sorted(Tally(self._phases()).items()):
            family.add_metric([phase], count)
        return [family]
