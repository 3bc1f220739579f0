"""The Prometheus series of a training, and where they are served.

Every name has the prefix `finetune_` and a base unit. Labels are bounded: the job is known by the pod and the
namespace that Prometheus adds.
"""

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


class Phase(StrEnum):
    """What the time of a process' step went to."""

    DATA = "data"
    COMPUTE = "compute"
    COMMUNICATION = "communication"
    WAIT = "wait"  # for slower processes
    CHECKPOINT = "checkpoint"
