from pathlib import Path

import pytest

from finetune_trainer.contract.spec import Wandb, WandbMode
from finetune_trainer.tracking import TrackingError, WandbTracker
from tests.unit.trainer.step_records import step_record

RECORD = step_record(loss=1.2344321)


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
