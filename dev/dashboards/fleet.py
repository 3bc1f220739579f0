"""The dashboard Fleet: all jobs of an operator, where they wait, what they cost, and why they fail."""

from dev.dashboards.panels import Dashboard, Panel, Query, Row, Unit

_GPU_SECONDS = "finetune_operator_gpu_seconds_total"
_COST = "finetune_operator_cost_total"


def _quantile(quantile: float, histogram: str) -> Query:
    expression = f"histogram_quantile({quantile}, sum by (le) (increase({histogram}_bucket[$__range])))"
    return Query(expression, "median" if quantile == 0.5 else f"{quantile:.0%}")


_JOBS = Row(
    "Jobs",
    (
        Panel(
            "Jobs by phase",
            "As the operator last told them.",
            Unit.NONE,
            (Query("sum by (phase) (finetune_operator_jobs)", "{{phase}}"),),
            width=12,
            is_stacked=True,
            minimum=0,
        ),
        Panel(
            "Trainings under way",
            "Jobs whose rank 0 is scraped, and how far they are.",
            Unit.RATIO,
            (
                Query(
                    "max by (namespace, finetune_dev_job) (finetune_step / (finetune_steps_total > 0))",
                    "{{namespace}}/{{finetune_dev_job}}",
                ),
            ),
            width=12,
            minimum=0,
            maximum=1,
        ),
    ),
)
_WAITING = Row(
    "How long they wait",
    (
        Panel(
            "Time in the queue",
            "From the making of an attempt's pods until all of them run, over the time shown: no node is free, a queue "
            "holds them back, an image is pulled.",
            Unit.SECONDS,
            (
                _quantile(0.5, "finetune_operator_attempt_queue_seconds"),
                _quantile(0.95, "finetune_operator_attempt_queue_seconds"),
            ),
            minimum=0,
        ),
        Panel(
            "Time to start",
            "From when all pods run until the first step begins, over the time shown: processes meet, read the model.",
            Unit.SECONDS,
            (
                _quantile(0.5, "finetune_operator_attempt_start_seconds"),
                _quantile(0.95, "finetune_operator_attempt_start_seconds"),
            ),
            minimum=0,
        ),
        Panel(
            "Waiting for the operator",
            "Jobs that wait to be looked at. It stays near zero.",
            Unit.NONE,
            (
                Query("sum(finetune_operator_queue_depth)", "waiting"),
                Query("sum(finetune_operator_queue_working)", "being looked at"),
            ),
            minimum=0,
        ),
    ),
)
_WORTH = Row(
    "What the GPUs were used for",
    (
        Panel(
            "Productive share",
            "GPU-seconds of steps that count, of all GPU-seconds from a training's beginning to its end, over the time "
            "shown.",
            Unit.RATIO,
            (
                Query(
                    f'sum(increase({_GPU_SECONDS}{{kind="productive"}}[$__range]))'
                    f' / sum(increase({_GPU_SECONDS}{{kind!="queued"}}[$__range]))',
                    "productive",
                ),
            ),
            width=6,
            is_figure=True,
            minimum=0,
            maximum=1,
        ),
        Panel(
            "GPU-seconds",
            "Over the time shown, by what became of them. Each is added when that is known: steps at their checkpoint. "
            "Process-seconds where jobs train on processors.",
            Unit.SECONDS,
            (Query(f"sum by (kind) (increase({_GPU_SECONDS}[$__range]))", "{{kind}}"),),
            width=6,
            is_figure=True,
        ),
        Panel(
            "GPU-seconds over time",
            "The same, in all since the operator started.",
            Unit.SECONDS,
            (Query(f"sum by (kind) ({_GPU_SECONDS})", "{{kind}}"),),
            width=12,
            is_stacked=True,
            minimum=0,
        ),
    ),
)
_MONEY = Row(
    "What it costs",
    (
        Panel(
            "Cost by namespace",
            "Over the time shown, in the currency of the chart's prices; nothing where there are none.",
            Unit.NONE,
            (
                Query(
                    f"sum by (job_namespace, currency) (increase({_COST}[$__range]))", "{{job_namespace}} {{currency}}"
                ),
            ),
            width=6,
            is_figure=True,
        ),
        Panel(
            "Lost share",
            "Of what was spent over the time shown: steps that a failure took away again.",
            Unit.RATIO,
            (
                Query(
                    f'sum by (currency) (increase({_COST}{{kind="lost"}}[$__range]))'
                    f" / (sum by (currency) (increase({_COST}[$__range])) > 0)",
                    "lost {{currency}}",
                ),
            ),
            width=6,
            is_figure=True,
            minimum=0,
            maximum=1,
        ),
        Panel(
            "Productive and lost cost, by namespace",
            "In all since the operator started. `kubectl finetune cost` tells what starting and storage cost, too.",
            Unit.NONE,
            (
                Query(
                    f'sum by (job_namespace, kind, currency) ({_COST}{{kind=~"productive|lost"}})',
                    "{{job_namespace}} {{kind}} {{currency}}",
                ),
            ),
            width=12,
            is_stacked=True,
            minimum=0,
        ),
    ),
)
_FAILURES = Row(
    "Why they fail",
    (
        Panel(
            "Jobs that failed for good, by reason",
            "Over the time shown.",
            Unit.NONE,
            (Query("sum by (reason) (increase(finetune_operator_jobs_failed_total[$__range])) > 0", "{{reason}}"),),
            width=8,
            minimum=0,
        ),
        Panel(
            "Attempts that ended, by reason",
            "Over the time shown. Succeeded is the good one; Infrastructure reasons start a new attempt.",
            Unit.NONE,
            (Query("sum by (reason) (increase(finetune_operator_attempts_total[$__range])) > 0", "{{reason}}"),),
            width=8,
            minimum=0,
        ),
        Panel(
            "Jobs that came to a good end",
            "Over the time shown.",
            Unit.NONE,
            (Query("sum(increase(finetune_operator_jobs_succeeded_total[$__range]))", "succeeded"),),
            width=8,
            minimum=0,
        ),
    ),
)
_STORAGE = Row(
    "Storage",
    (
        Panel(
            "Free storage",
            "Share of each filesystem that a training writes to.",
            Unit.RATIO,
            (
                Query(
                    "min by (namespace, finetune_dev_job, filesystem)"
                    " (finetune_storage_free_bytes / finetune_storage_size_bytes)",
                    "{{namespace}}/{{finetune_dev_job}} {{filesystem}}",
                ),
            ),
            width=16,
            minimum=0,
            maximum=1,
        ),
        Panel(
            "Jobs that will run out of room",
            "Their condition StoragePressure says of what, and how much is missing.",
            Unit.NONE,
            (Query("sum(finetune_operator_storage_pressure_jobs)", "jobs"),),
            width=8,
            minimum=0,
        ),
    ),
)
_OPERATOR = Row(
    "The operator",
    (
        Panel(
            "Ready",
            "1 while jobs are being worked on.",
            Unit.NONE,
            (Query("max(finetune_operator_ready)", "ready"),),
            width=4,
            is_figure=True,
        ),
        Panel(
            "Time of a look at a job",
            "95th percentile.",
            Unit.SECONDS,
            (
                Query(
                    "histogram_quantile(0.95, sum by (le) ("
                    "rate(finetune_operator_reconcile_duration_seconds_bucket[$__rate_interval])))",
                    "95%",
                ),
            ),
            minimum=0,
        ),
        Panel(
            "Looks that failed",
            "Each is tried again by itself.",
            Unit.PER_SECOND,
            (Query("sum(rate(finetune_operator_reconcile_errors_total[$__rate_interval]))", "failed"),),
            width=4,
            minimum=0,
        ),
        Panel(
            "Requests to the API server",
            "By status code; 0 had no answer.",
            Unit.PER_SECOND,
            (Query("sum by (code) (rate(finetune_operator_api_requests_total[$__rate_interval]))", "{{code}}"),),
            minimum=0,
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
