from pathlib import Path

import pytest

from finetune_trainer.contract.spec import Wandb, WandbMode
from finetune_trainer.metrics import StepRecord
from finetune_trainer.tracking import TrackingError, WandbTracker

RECORD = StepRecord(
    step=1,
    epoch=0.5,
    loss=1.2344321,
    learning_rate=2e-4,
    gradient_norm=0.5,
    tokens=2048,
    tokens_per_second=1024.0,
    seconds=2.0,
    compute_seconds=1.5,
    data_wait_seconds=0.0,
    communication_seconds=0.25,
    checkpoint_seconds=0.0,
    model_flops_utilization=None,
    timestamp_seconds=1.7e9,
)


def test_an_offline_run_is_written_beside_the_logs_and_needs_no_key(tmp_path: Path) -> None:
    settings = Wandb(project="calls", mode=WandbMode.OFFLINE)
    tracker = WandbTracker(settings, "function-calling", "function-calling-7d0f", {"lora.rank": 4}, tmp_path, {})
    tracker.record_step(RECORD)
    tracker.finish({"final_loss": 1.0})
    (written,) = tmp_path.glob("wandb/offline-run-*/run-function-calling-7d0f.wandb")
    content = written.read_bytes()
    assert b"1.2344321" in content
    assert b"lora.rank" in content


def test_an_online_run_without_a_key_says_where_the_key_belongs(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="WANDB_API_KEY is not set: put it into the Secret"):
        WandbTracker(Wandb(project="calls"), "function-calling", "id", {}, tmp_path, {})
