"""A step, as the recipe tells of it."""

from typing import Any

from finetune_trainer.metrics import StepRecord


def step_record(**changes: Any) -> StepRecord:
    """Return the record of a step of two seconds without a GPU, changed in what a test looks at."""
    values: dict[str, Any] = {
        "step": 1,
        "epoch": 0.5,
        "loss": 2.0,
        "learning_rate": 2e-4,
        "gradient_norm": 0.5,
        "tokens": 2048,
        "tokens_per_second": 1024.0,
        "seconds": 2.0,
        "compute_seconds": 1.5,
        "data_wait_seconds": 0.0,
        "communication_seconds": 0.25,
        "checkpoint_seconds": 0.0,
        "model_flops_utilization": None,
        "timestamp_seconds": 1.7e9,
    }
    return StepRecord(**(values | changes))
