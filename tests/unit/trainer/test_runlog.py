import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.metrics import StepRecord
from finetune_trainer.runlog import RunLog, describe_step
from tests.unit.trainer.step_records import step_record


def record_of(step: int) -> StepRecord:
    return step_record(
        step=step,
        loss=1.23449,
        gradient_norm=0.5349,
        tokens_per_second=1234.4,
        seconds=1.66,
        data_wait_seconds=0.01,
    )


def test_a_step_reads_as_one_line() -> None:
    assert describe_step(record_of(10), steps_total=1000, seconds_a_step=0.7619) == (
        "step 10/1000  loss 1.2345  lr 2.0e-04  grad norm 0.53  1234 tokens/s  communication 14%  eta 0:12:34"
    )


def test_a_step_tells_what_its_time_went_to_where_it_is_worth_a_word() -> None:
    record = replace(record_of(10), model_flops_utilization=0.4712, data_wait_seconds=0.166, communication_seconds=0.0)
    assert describe_step(record, steps_total=1000, seconds_a_step=0.7619) == (
        "step 10/1000  loss 1.2345  lr 2.0e-04  grad norm 0.53  1234 tokens/s  mfu 47.1%  data 10%  eta 0:12:34"
    )


def test_a_wait_for_a_checkpoint_before_the_step_is_a_share_of_both() -> None:
    record = replace(record_of(10), compute_seconds=0.5, data_wait_seconds=0.0, communication_seconds=0.0)
    assert "checkpoint 75%  eta" in describe_step(replace(record, checkpoint_seconds=1.5), 1000, 1.0)


def test_lines_go_to_the_log_with_the_time_and_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path / "logs", resumed_step=0) as log:
        log.say("hello")
    line = (tmp_path / "logs" / "training.log").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ hello\n", line)
    assert capsys.readouterr().out == "hello\n"


def test_every_step_is_one_json_line_that_can_be_read_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, resumed_step=0) as log:
        log.record_step(record_of(1))
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == 1.23449


def test_a_resumed_run_drops_the_steps_that_it_does_again_and_half_a_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, resumed_step=0) as log:
        for step in (1, 2, 3, 4):
            log.record_step(record_of(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with RunLog(tmp_path, resumed_step=2) as log:
        log.record_step(record_of(3))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_lines_that_a_lost_node_left_unreadable_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    with RunLog(tmp_path, resumed_step=0) as log:
        log.record_step(record_of(1))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\x00" * 64 + b"\n\xff\xfe\n7\n{}\n")
    with RunLog(tmp_path, resumed_step=2) as log:
        log.record_step(record_of(3))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 3]


def test_a_network_disk_without_space_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("training.log").symlink_to("/dev/full")
    message = f"{tmp_path}: cannot be written: No space left on device"
    with pytest.raises(TrainerError, match=message) as caught, RunLog(tmp_path, resumed_step=0) as log:
        log.say("hello")
    assert caught.value.reason is Reason.STORAGE_FULL
