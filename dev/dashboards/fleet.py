"""The dashboard Fleet: all jobs of an operator, where they wait, what they cost, and why they fail."""

from dev.dashboards.panels import Dashboard, Panel, Query, Row, Unit, counts, figure, shares

_GPU_SECONDS = "finetune_operator_gpu_seconds_total"
_COST = "finetune_operator_cost_total"
_JOB = "{{namespace}}/{{finetune_dev_job}}"


def _over_time(counter: str, by: str = "", where: str = "") -> str:
    """Return an expression: by how much a counter has grown over the time shown."""
    kept = f" by ({by}) " if by else ""
    return f"sum{kept}(increase({counter}{where}[$__range]))"


def _waited(title: str, description: str, histogram: str) -> Panel:
    """Return a panel about a time that attempts wait."""
    queries = (
        Query(f"histogram_quantile({quantile}, {_over_time(f'{histogram}_bucket', 'le')})", legend)
        for quantile, legend in ((0.5, "median"), (0.95, "95%"))
    )
    return counts(title, description, Unit.SECONDS, *queries)


def _by_reason(title: str, description: str, counter: str) -> Panel:
    """Return a panel about what happened, by its reason."""
    return counts(title, description, Unit.NONE, Query(f"{_over_time(counter, 'reason')} > 0", "{{reason}}"))


_JOBS = Row(
    "Jobs",
    (
        counts(
            "Jobs by phase",
            "As the operator last told them.",
            Unit.NONE,
            Query("sum by (phase) (finetune_operator_jobs)", "{{phase}}"),
            width=12,
            stacked=True,
        ),
        shares(
            "Trainings under way",
            "Jobs whose rank 0 is scraped, and how far they are.",
            Query("max by (namespace, finetune_dev_job) (finetune_step / (finetune_steps_total > 0))", _JOB),
            width=12,
        ),
    ),
)
_WAITING = Row(
    "How long they wait",
    (
        _waited(
            "Time in the queue",
            "From the making of an attempt's pods until all of them run, over the time shown: no node is free, a queue "
            "holds them back, an image is pulled.",
            "finetune_operator_attempt_queue_seconds",
        ),
        _waited(
            "Time to start",
            "From when all pods run until the first step begins, over the time shown: processes meet, read the model.",
            "finetune_operator_attempt_start_seconds",
        ),
        counts(
            "Waiting for the operator",
            "Jobs that wait to be looked at. It stays near zero.",
            Unit.NONE,
            Query("sum(finetune_operator_queue_depth)", "waiting"),
            Query("sum(finetune_operator_queue_working)", "being looked at"),
        ),
    ),
)
_WORTH = Row(
    "What the GPUs were used for",
    (
        figure(
            "Productive share",
            "GPU-seconds of steps that count, of all GPU-seconds from a training's beginning to its end, over the time "
            "shown.",
            Unit.RATIO,
            Query(
                _over_time(_GPU_SECONDS, where='{kind="productive"}')
                + " / "
                + _over_time(_GPU_SECONDS, where='{kind!="queued"}'),
                "productive",
            ),
            width=6,
            of_one=True,
        ),
        figure(
            "GPU-seconds",
            "Over the time shown, by what became of them. Each is added when that is known: steps at their checkpoint. "
            "Process-seconds where jobs train on processors.",
            Unit.SECONDS,
            Query(_over_time(_GPU_SECONDS, "kind"), "{{kind}}"),
            width=6,
        ),
        counts(
            "GPU-seconds over time",
            "The same, in all since the operator started.",
            Unit.SECONDS,
            Query(f"sum by (kind) ({_GPU_SECONDS})", "{{kind}}"),
            width=12,
            stacked=True,
        ),
    ),
)
_MONEY = Row(
    "What it costs",
    (
        figure(
            "Cost by namespace",
            "Over the time shown, in the currency of the chart's prices; nothing where there are none.",
            Unit.NONE,
            Query(_over_time(_COST, "job_namespace, currency"), "{{job_namespace}} {{currency}}"),
            width=6,
        ),
        figure(
            "Lost share",
            "Of what was spent over the time shown: steps that a failure took away again.",
            Unit.RATIO,
            Query(
                _over_time(_COST, "currency", '{kind="lost"}') + f" / ({_over_time(_COST, 'currency')} > 0)",
                "lost {{currency}}",
            ),
            width=6,
            of_one=True,
        ),
        counts(
            "Productive and lost cost, by namespace",
            "In all since the operator started. `kubectl finetune cost` tells what starting and storage cost, too.",
            Unit.NONE,
            Query(
                f'sum by (job_namespace, kind, currency) ({_COST}{{kind=~"productive|lost"}})',
                "{{job_namespace}} {{kind}} {{currency}}",
            ),
            width=12,
            stacked=True,
        ),
    ),
)
_FAILURES = Row(
    "Why they fail",
    (
        _by_reason(
            "Jobs that failed for good, by reason", "Over the time shown.", "finetune_operator_jobs_failed_total"
        ),
        _by_reason(
            "Attempts that ended, by reason",
            "Over the time shown. Succeeded is the good one; Infrastructure reasons start a new attempt.",
            "finetune_operator_attempts_total",
        ),
        counts(
            "Jobs that came to a good end",
            "Over the time shown.",
            Unit.NONE,
            Query(_over_time("finetune_operator_jobs_succeeded_total"), "succeeded"),
        ),
    ),
)
_STORAGE = Row(
    "Storage",
    (
        shares(
            "Free storage",
            "Share of each filesystem that a training writes to.",
            Query(
                "min by (namespace, finetune_dev_job, filesystem)"
                " (finetune_storage_free_bytes / finetune_storage_size_bytes)",
                f"{_JOB} {{{{filesystem}}}}",
            ),
            width=16,
        ),
        counts(
            "Jobs that will run out of room",
            "Their condition StoragePressure says of what, and how much is missing.",
            Unit.NONE,
            Query("sum(finetune_operator_storage_pressure_jobs)", "jobs"),
        ),
    ),
)
_OPERATOR = Row(
    "The operator",
    (
        figure("Ready", "1 while jobs are being worked on.", Unit.NONE, Query("max(finetune_operator_ready)", "ready")),
        counts(
            "Time of a look at a job",
            "95th percentile.",
            Unit.SECONDS,
            Query(
                "histogram_quantile(0.95, sum by (le) ("
                "rate(finetune_operator_reconcile_duration_seconds_bucket[$__rate_interval])))",
                "95%",
            ),
        ),
        counts(
            "Looks that failed",
            "Each is tried again by itself.",
            Unit.PER_SECOND,
            Query("sum(rate(finetune_operator_reconcile_errors_total[$__rate_interval]))", "failed"),
            width=4,
        ),
        counts(
            "Requests to the API server",
            "By status code; 0 had no answer.",
            Unit.PER_SECOND,
            Query("sum by (code) (rate(finetune_operator_api_requests_total[$__rate_interval]))", "{{code}}"),
        ),
    ),
)

FLEET = Dashboard(
    uid="finetune-fleet",
    title="Fine-tuning / Fleet",
    description="All FineTuneJobs: where they wait, what the GPUs were used for, why they fail.",
    variables=(),
    rows=(_JOBS, _WAITING, _WORTH, _MONEY, _FAILURES, _STORAGE, _OPERATOR),
    hours=24,
)
