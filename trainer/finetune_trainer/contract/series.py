"""The Prometheus series of a training, what each of them means, and where they are served.

The exporter makes its instruments from the tables below, and docs/reference/metrics.md is written from them.
Every name has the prefix `finetune_` and a base unit. Labels are bounded: the job is known by the pod and the
namespace that Prometheus adds.
"""

from dataclasses import dataclass
from enum import StrEnum

METRICS_PORT = 9464
METRICS_PORT_NAME = "metrics"
METRICS_PATH = "/metrics"
PROGRESS_PATH = "/progress"  # on global rank 0: `contract.progress.ProgressReport` as JSON

LOSS = "finetune_loss"
LEARNING_RATE = "finetune_learning_rate"
GRADIENT_NORM = "finetune_gradient_norm"
STEP = "finetune_step"
STEPS_TOTAL = "finetune_steps_total"
EPOCH = "finetune_epoch"
TOKENS_TOTAL = "finetune_tokens_total"
TOKENS_PER_SECOND = "finetune_tokens_per_second"
STEP_DURATION_SECONDS = "finetune_step_duration_seconds"
STEP_PHASE_SECONDS_TOTAL = "finetune_step_phase_seconds_total"  # by `Phase` and local rank
MODEL_FLOPS_UTILIZATION_RATIO = "finetune_model_flops_utilization_ratio"
DATA_WAIT_SECONDS_TOTAL = "finetune_data_wait_seconds_total"
CHECKPOINT_DURATION_SECONDS = "finetune_checkpoint_duration_seconds"
CHECKPOINT_LAST_STEP = "finetune_checkpoint_last_step"
CHECKPOINT_LAST_TIMESTAMP_SECONDS = "finetune_checkpoint_last_timestamp_seconds"
CHECKPOINT_INTERVAL_STEPS = "finetune_checkpoint_interval_steps"
ATTEMPT = "finetune_attempt"
LAST_STEP_TIMESTAMP_SECONDS = "finetune_last_step_timestamp_seconds"
GPU_UTILIZATION_RATIO = "finetune_gpu_utilization_ratio"
GPU_MEMORY_USED_BYTES = "finetune_gpu_memory_used_bytes"
GPU_MEMORY_PEAK_BYTES = "finetune_gpu_memory_peak_bytes"
KERNEL_FALLBACKS = "finetune_kernel_fallbacks"
NODE_INFO = "finetune_node_info"
STORAGE_SIZE_BYTES = "finetune_storage_size_bytes"
STORAGE_FREE_BYTES = "finetune_storage_free_bytes"
NETWORK_RECEIVE_BYTES_TOTAL = "finetune_network_receive_bytes_total"
NETWORK_TRANSMIT_BYTES_TOTAL = "finetune_network_transmit_bytes_total"

PHASE_LABEL = "phase"
LOCAL_RANK_LABEL = "local_rank"
NODE_RANK_LABEL = "node_rank"
GPU_LABEL = "gpu"
DEVICE_LABEL = "device"
FILESYSTEM_LABEL = "filesystem"


class Phase(StrEnum):
    """What the time of a process' step went to."""

    DATA = "data"
    COMPUTE = "compute"
    COMMUNICATION = "communication"
    WAIT = "wait"  # for slower processes
    CHECKPOINT = "checkpoint"


class SeriesType(StrEnum):
    """Prometheus' types."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Series:
    """What a series is."""

    name: str
    type: SeriesType
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's."""


_GAUGE, _COUNTER, _HISTOGRAM = SeriesType.GAUGE, SeriesType.COUNTER, SeriesType.HISTOGRAM
# From the steps of a tiny model on a CPU to those of a large one with a long accumulation.
STEP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
CHECKPOINT_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

OF_RANK_ZERO = (
    Series(LOSS, _GAUGE, "Mean loss of the last global batch."),
    Series(LEARNING_RATE, _GAUGE, "Learning rate of the last step."),
    Series(GRADIENT_NORM, _GAUGE, "Norm of the last gradient, before clipping."),
    Series(STEP, _GAUGE, "Optimizer steps done."),
    Series(STEPS_TOTAL, _GAUGE, "Optimizer steps of the whole run."),
    Series(EPOCH, _GAUGE, "Passes over the data done, as a fraction."),
    Series(TOKENS_TOTAL, _COUNTER, "Tokens computed by all processes since this attempt started."),
    Series(TOKENS_PER_SECOND, _GAUGE, "Tokens a second of the last step, all processes."),
    Series(STEP_DURATION_SECONDS, _HISTOGRAM, "Duration of an optimizer step.", buckets=STEP_SECONDS),
    Series(
        MODEL_FLOPS_UTILIZATION_RATIO,
        _GAUGE,
        "Arithmetic that the model needs, of what all GPUs could do in bf16, in the last step; not there where that is "
        "not known.",
    ),
    Series(DATA_WAIT_SECONDS_TOTAL, _COUNTER, "Time that rank 0 waited for data."),
    Series(
        CHECKPOINT_DURATION_SECONDS,
        _HISTOGRAM,
        "Time that the training stood still for a checkpoint.",
        buckets=CHECKPOINT_SECONDS,
    ),
    Series(CHECKPOINT_LAST_STEP, _GAUGE, "Step of the newest checkpoint."),
    Series(
        CHECKPOINT_LAST_TIMESTAMP_SECONDS,
        _GAUGE,
        "Unix time since which steps would be lost: of the newest checkpoint, or else of the beginning.",
    ),
    Series(CHECKPOINT_INTERVAL_STEPS, _GAUGE, "Steps from one checkpoint to the next."),
    Series(ATTEMPT, _GAUGE, "Which attempt of the job this is, from 1."),
    Series(STORAGE_SIZE_BYTES, _GAUGE, "Size of a filesystem that the training writes to.", (FILESYSTEM_LABEL,)),
    Series(
        STORAGE_FREE_BYTES,
        _GAUGE,
        "What may still be written to a filesystem, `shared` or `network`; measured every 15 s.",
        (FILESYSTEM_LABEL,),
    ),
    Series(LAST_STEP_TIMESTAMP_SECONDS, _GAUGE, "Unix time at which the last step ended."),
)
OF_NODE = (
    Series(
        STEP_PHASE_SECONDS_TOTAL,
        _COUNTER,
        "What the time of the steps of a process of this node went to: `compute`, `data`, `communication`, `wait`, "
        "`checkpoint`; one step late.",
        (LOCAL_RANK_LABEL, PHASE_LABEL),
    ),
    Series(NODE_INFO, _GAUGE, "1; its label says which node of the gang the pod is.", (NODE_RANK_LABEL,)),
    Series(
        KERNEL_FALLBACKS,
        _GAUGE,
        "What local rank 0 does slower than it meant to: kernels that could not be compiled, and a CUDA graph that "
        "could not be kept. training.log says why.",
    ),
    Series(
        GPU_UTILIZATION_RATIO, _GAUGE, "Share of time in which a kernel ran on a GPU, as NVML samples it.", (GPU_LABEL,)
    ),
    Series(GPU_MEMORY_USED_BYTES, _GAUGE, "Memory in use on a GPU.", (GPU_LABEL,)),
    Series(GPU_MEMORY_PEAK_BYTES, _GAUGE, "Most memory that tensors of local rank 0 took at once.", (GPU_LABEL,)),
    Series(NETWORK_RECEIVE_BYTES_TOTAL, _COUNTER, "Bytes received by a network interface of the pod.", (DEVICE_LABEL,)),
    Series(NETWORK_TRANSMIT_BYTES_TOTAL, _COUNTER, "Bytes sent by a network interface of the pod.", (DEVICE_LABEL,)),
)
BY_NAME = {series.name: series for series in (*OF_RANK_ZERO, *OF_NODE)}
