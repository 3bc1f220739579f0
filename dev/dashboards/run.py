"""The dashboard Run: how one job trains, and why not faster."""

from dev.dashboards.panels import Dashboard, Panel, Query, Row, Unit, Variable, counts, figure

_JOB = 'namespace="$namespace", finetune_dev_job="$job"'
# Joins what a pod says to the number of its node in the gang; it also picks the pods of the job.
_NODE = f"* on (namespace, pod) group_left (node_rank) finetune_node_info{{{_JOB}}}"
_STEPS_PER_SECOND = f"sum(rate(finetune_step_duration_seconds_count{{{_JOB}}}[$__rate_interval]))"


def _newest(series: str) -> str:
    return f"max({series}{{{_JOB}}})"


def _gpus(dcgm: str, nvml: str) -> str:
    """Return a query by GPU: of dcgm-exporter where it tells of the pod, otherwise of the trainer itself."""
    either = f"{dcgm} or on (namespace, pod) {nvml}{{{_JOB}}}"
    return f"max by (node_rank, gpu) (({either}) {_NODE})"


_CHECKPOINT_AGE = Query(f"time() - {_newest('finetune_checkpoint_last_timestamp_seconds')}", "age")


def _one(title: str, description: str, series: str, legend: str) -> Panel:
    """Return a figure that is the newest value of one series."""
    return figure(title, description, Unit.NONE, Query(_newest(series), legend))


_NOW = Row(
    "Now",
    (
        figure(
            "Step",
            "Steps done, of the whole run.",
            Unit.NONE,
            Query(_newest("finetune_step"), "done"),
            Query(_newest("finetune_steps_total"), "of"),
        ),
        _one("Loss now", "Mean loss of the last global batch.", "finetune_loss", "loss"),
        figure(
            "Time left",
            "The steps to come at the pace of the last ones.",
            Unit.SECONDS,
            Query(
                f"({_newest('finetune_steps_total')} - {_newest('finetune_step')}) / {_STEPS_PER_SECOND}", "time left"
            ),
        ),
        _one(
            "Attempt",
            "Which attempt of the job trains. It rises when a gang was started anew, or the job was resumed.",
            "finetune_attempt",
            "attempt",
        ),
        figure(
            "Checkpoint age now",
            "What a failure now would cost: the time since the newest checkpoint, or since the beginning.",
            Unit.SECONDS,
            _CHECKPOINT_AGE,
        ),
        _one("Tokens per second now", "Of all processes, in the last step.", "finetune_tokens_per_second", "tokens/s"),
    ),
)
_LEARNING = Row(
    "Is it learning",
    (
        Panel(
            "Loss",
            "Mean loss of each global batch, before the update. It should fall, and then flatten; a rise that stays "
            "means that the learning rate is too high or that there are odd rows in the data.",
            Unit.NONE,
            (Query(_newest("finetune_loss"), "loss"),),
        ),
        counts(
            "Learning rate",
            "Linear to its peak in the warm-up, then a cosine to zero.",
            Unit.SCIENTIFIC,
            Query(_newest("finetune_learning_rate"), "learning rate"),
        ),
        counts(
            "Gradient norm",
            "Before clipping. Spikes come before a loss that diverges.",
            Unit.NONE,
            Query(_newest("finetune_gradient_norm"), "norm"),
        ),
    ),
)
_SPEED = Row(
    "Is it fast",
    (
        counts(
            "Tokens per second",
            "Of all processes.",
            Unit.NONE,
            Query(_newest("finetune_tokens_per_second"), "tokens/s"),
        ),
        Panel(
            "Model FLOPs utilisation (MFU)",
            "Arithmetic that the model needs, of what all GPUs could do in bf16. Unknown where a GPU's peak is.",
            Unit.RATIO,
            (Query(_newest("finetune_model_flops_utilization_ratio"), "MFU"),),
            minimum=0,
            maximum=1,
            needs_gpu=True,
        ),
        counts(
            "What a step's time goes to",
            "Mean over all processes. Waiting for data, for other processes (wait) and for checkpoints is what can be "
            "saved.",
            Unit.SECONDS,
            Query(
                f"avg by (phase) (rate(finetune_step_phase_seconds_total{{{_JOB}}}[$__rate_interval]))"
                f" / on () group_left () {_STEPS_PER_SECOND}",
                "{{phase}}",
            ),
            stacked=True,
        ),
        counts(
            "Compute of each process",
            "Time of a step in which each process computes or reads data, waiting for others left out. One that stands "
            "out is a straggler for which all others wait.",
            Unit.SECONDS,
            Query(
                "sum by (node_rank, local_rank) (rate(finetune_step_phase_seconds_total"
                f'{{{_JOB}, phase=~"compute|data"}}[$__rate_interval]) {_NODE})'
                f" / on () group_left () {_STEPS_PER_SECOND}",
                "node {{node_rank}} process {{local_rank}}",
            ),
        ),
        counts(
            "Time of a step",
            "Mean, and the 95th percentile as far as the buckets can tell it.",
            Unit.SECONDS,
            Query(
                f"sum(rate(finetune_step_duration_seconds_sum{{{_JOB}}}[$__rate_interval])) / {_STEPS_PER_SECOND}",
                "mean",
            ),
            Query(
                "histogram_quantile(0.95, sum by (le) ("
                f"rate(finetune_step_duration_seconds_bucket{{{_JOB}}}[$__rate_interval])))",
                "95th percentile",
            ),
        ),
        counts(
            "Waiting for data",
            "Share of the time in which rank 0 waits for data.",
            Unit.RATIO,
            Query(f"sum(rate(finetune_data_wait_seconds_total{{{_JOB}}}[$__rate_interval]))", "waiting"),
        ),
    ),
)
_HARDWARE = Row(
    "Is the hardware busy",
    (
        Panel(
            "GPU utilisation",
            "Share of the time in which a kernel runs, by node and GPU: as dcgm-exporter tells it where there is one, "
            "as NVML does otherwise. It should stay above 85 %.",
            Unit.RATIO,
            (
                Query(
                    _gpus("DCGM_FI_DEV_GPU_UTIL / 100", "finetune_gpu_utilization_ratio"),
                    "node {{node_rank}} GPU {{gpu}}",
                ),
            ),
            minimum=0,
            maximum=1,
            needs_gpu=True,
        ),
        Panel(
            "GPU memory in use",
            "By node and GPU. With 70 to 80 % in use there is room for the longest batch.",
            Unit.BYTES,
            (
                Query(
                    _gpus("DCGM_FI_DEV_FB_USED * 1048576", "finetune_gpu_memory_used_bytes"),
                    "node {{node_rank}} GPU {{gpu}}",
                ),
            ),
            minimum=0,
            needs_gpu=True,
        ),
        Panel(
            "Network",
            "Over the interfaces of each pod; traffic over RDMA does not pass them.",
            Unit.BYTES_PER_SECOND,
            tuple(
                Query(
                    f"sum by (node_rank) (rate(finetune_network_{direction}_bytes_total"
                    f'{{{_JOB}, device!="lo"}}[$__rate_interval]) {_NODE})',
                    f"node {{{{node_rank}}}} {direction}s",
                )
                for direction in ("receive", "transmit")
            ),
            minimum=0,
        ),
    ),
)
_SAFETY = Row(
    "What a failure would cost",
    (
        counts(
            "Checkpoint age",
            "The time since the newest checkpoint, or since the beginning.",
            Unit.SECONDS,
            _CHECKPOINT_AGE,
            width=6,
        ),
        counts(
            "Stopped for checkpoints",
            "Share of the time in which the training stands still for one.",
            Unit.RATIO,
            Query(f"sum(rate(finetune_checkpoint_duration_seconds_sum{{{_JOB}}}[$__rate_interval]))", "stopped"),
            width=6,
        ),
        counts(
            "Attempts",
            "Which attempt trains, and the step that it is at: after a failure it falls back to the last checkpoint.",
            Unit.NONE,
            Query(_newest("finetune_attempt"), "attempt"),
            Query(_newest("finetune_step"), "step"),
            width=6,
        ),
        counts(
            "Free storage",
            "On the filesystems that the training writes to.",
            Unit.BYTES,
            Query(f"max by (filesystem) (finetune_storage_free_bytes{{{_JOB}}})", "{{filesystem}}"),
            width=6,
        ),
    ),
)

RUN = Dashboard(
    uid="finetune-run",
    title="Fine-tuning / Run",
    description="How one FineTuneJob trains, and why not faster.",
    variables=(
        Variable("namespace", "Namespace", "label_values(finetune_steps_total, namespace)"),
        Variable("job", "Job", 'label_values(finetune_steps_total{namespace="$namespace"}, finetune_dev_job)'),
    ),
    rows=(_NOW, _LEARNING, _SPEED, _HARDWARE, _SAFETY),
    hours=6,
)
