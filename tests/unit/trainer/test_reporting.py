import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry

from finetune_trainer.checkpoint.background import Written
from finetune_trainer.contract import series
from finetune_trainer.contract.progress import CheckpointReport, ProgressReport
from finetune_trainer.contract.spec import Wandb, WandbMode
from finetune_trainer.contract.termination import TrainedReport
from finetune_trainer.exporter import ProgressPage, RankZeroExporter
from finetune_trainer.free_space import FreeSpace
from finetune_trainer.metrics import ProcessMetrics, TrainingMetrics
from finetune_trainer.reporting import RankZeroReporter, Reporter
from finetune_trainer.runlog import RunLog
from finetune_trainer.tracking import WandbTracker
from tests.unit.trainer.step_records import step_record


def exporter_of(registry: CollectorRegistry, page: ProgressPage | None = None) -> RankZeroExporter:
    return RankZeroExporter(ProcessMetrics(registry, 0, 2), TrainingMetrics(registry), page or ProgressPage())


def reporter_of(
    log: RunLog, begun_at: int = 0, total_steps: int = 30, exporter: RankZeroExporter | None = None
) -> Reporter:
    begun = ProgressReport(step=begun_at, total_steps=total_steps, epoch=1, resumed_from_step=begun_at)
    exporter = exporter or exporter_of(CollectorRegistry())
    return RankZeroReporter(log, exporter, None, begun, steps_per_epoch=10, log_every_steps=10)


WRITTEN = Written(
    CheckpointReport(step=10, time="2026-11-23T08:00:00Z", path="jobs/a/step-10", bytes=99, digest="sha256:01"),
    1.5,
    0.02,
)
REPORT = TrainedReport(
    steps=30,
    first_loss=2.0,
    final_loss=0.5,
    tokens=1000,
    tokens_per_second=10.0,
    adapter_path="jobs/team-a/calls/7d0f/adapter",
    adapter_digest="sha256:00",
)


def test_people_hear_of_the_first_step_of_each_tenth_and_of_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, resumed_step=4) as log:
        reporter = reporter_of(log, begun_at=4, total_steps=23)
        for step in range(5, 24):
            reporter.record_step(step_record(step=step))
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["5/23", "10/23", "20/23", "23/23"]


def test_the_time_left_is_that_of_the_mean_step_since_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, resumed_step=0) as log:
        reporter_of(log, total_steps=100).record_step(step_record(step=1))
    assert capsys.readouterr().out.endswith("eta 0:03:18\n")  # 99 steps of 2 s


def test_prometheus_knows_where_a_run_goes_on_before_its_first_step(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with RunLog(tmp_path, resumed_step=40) as log:
        reporter_of(log, 40, 100, exporter_of(registry))
    assert registry.get_sample_value(series.STEP) == 40
    assert registry.get_sample_value(series.CHECKPOINT_LAST_STEP) == 40
    assert registry.get_sample_value(series.STEPS_TOTAL) == 100


def test_the_last_line_says_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, resumed_step=0) as log:
        reporter_of(log).finish(REPORT)
    assert capsys.readouterr().out == (
        "trained 30 steps: loss 2.0000 -> 0.5000, 1000 tokens, 10 tokens/s; adapter in jobs/team-a/calls/7d0f/adapter\n"
    )


def report_while_wandb_dies(directory: Path) -> None:
    tracker = WandbTracker(Wandb(project="calls", mode=WandbMode.OFFLINE), "calls", "calls-7d0f", {}, directory, {})
    with RunLog(directory, resumed_step=0) as log:
        exporter = exporter_of(CollectorRegistry())
        begun = ProgressReport(step=0, total_steps=30, epoch=1)
        reporter = RankZeroReporter(log, exporter, tracker, begun, steps_per_epoch=10, log_every_steps=10)
        reporter.record_step(step_record(step=1))
        (service,) = (child for child in psutil.Process().children() if "wandb" in child.name())
        service.kill()
        service.wait()
        reporter.record_step(step_record(step=2))
        reporter.record_step(step_record(step=3))
        reporter.finish(REPORT)


def test_a_run_goes_on_when_the_process_of_weights_and_biases_dies(tmp_path: Path) -> None:
    # In a process of its own: wandb does not work any more in one that lost its.
    process = multiprocessing.get_context("fork").Process(target=report_while_wandb_dies, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    told = (tmp_path / "training.log").read_text()
    assert told.count("warning: no longer reporting to Weights & Biases: ") == 1
    assert "trained 30 steps" in told
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.say("hello")
    reporter.record_step(step_record(step=1))
    reporter.record_checkpoint(WRITTEN)
    reporter.finish(REPORT)
    assert capsys.readouterr().out == ""


def test_the_operator_sees_the_progress_from_the_first_moment_on(tmp_path: Path) -> None:
    page = ProgressPage()
    with RunLog(tmp_path, resumed_step=0) as log:
        reporter = reporter_of(log, 0, 30, exporter_of(CollectorRegistry(), page))
        assert asked(page) == {"step": 0, "totalSteps": 30, "epoch": 1, "resumedFromStep": 0} | NOTHING_YET
        reporter.record_step(step_record(step=10))
        assert asked(page)["epoch"] == 1  # the tenth of ten steps
        reporter.record_step(step_record(step=11))
    assert asked(page) == NOTHING_YET | {
        "step": 11,
        "totalSteps": 30,
        "epoch": 2,
        "resumedFromStep": 0,
        "loss": 2.0,
        "learningRate": 2e-4,
        "tokensPerSecond": 1024.0,
        "lastStepTime": "2023-11-14T22:13:20Z",
    }


NOTHING_YET = {
    "loss": None,
    "learningRate": None,
    "tokensPerSecond": None,
    "lastStepTime": None,
    "checkpoint": None,
    "damagedCheckpoints": [],
    "filesystems": [],
}


def asked(page: ProgressPage) -> dict[str, Any]:
    body = b"".join(page({}, lambda *_: lambda _: None))
    document: dict[str, Any] = json.loads(body)
    return document


def test_everybody_hears_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, registry = ProgressPage(), CollectorRegistry()
    with RunLog(tmp_path, resumed_step=0) as log:
        reporter_of(log, 0, 30, exporter_of(registry, page)).record_checkpoint(WRITTEN)
    assert asked(page)["checkpoint"] == {
        "step": 10,
        "time": "2026-11-23T08:00:00Z",
        "path": "jobs/a/step-10",
        "bytes": 99,
        "digest": "sha256:01",
    }
    assert registry.get_sample_value(series.CHECKPOINT_LAST_STEP) == 10
    assert registry.get_sample_value(series.CHECKPOINT_LAST_TIMESTAMP_SECONDS) == 1795420800  # 2026-11-23 08:00 UTC
    assert registry.get_sample_value(f"{series.CHECKPOINT_DURATION_SECONDS}_sum") == 0.02
    assert capsys.readouterr().out == (
        "checkpoint of step 10 written to jobs/a/step-10 in 1.5 s; the training stood still for 0.020 s\n"
    )


def test_what_a_failure_would_cost_counts_from_the_checkpoint_that_is_gone_on_from(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    begun = ProgressReport(step=10, total_steps=30, epoch=1, resumed_from_step=10, checkpoint=WRITTEN.report)
    with RunLog(tmp_path, resumed_step=10) as log:
        RankZeroReporter(log, exporter_of(registry), None, begun, 10, 10)
    assert registry.get_sample_value(series.CHECKPOINT_LAST_TIMESTAMP_SECONDS) == 1795420800


def test_what_a_failure_would_cost_counts_from_the_beginning_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with RunLog(tmp_path, resumed_step=0) as log:
        before = time.time()
        reporter_of(log, exporter=exporter_of(registry))
    unsaved_since = registry.get_sample_value(series.CHECKPOINT_LAST_TIMESTAMP_SECONDS)
    assert unsaved_since is not None
    assert before <= unsaved_since <= time.time()


def test_the_operator_hears_of_the_room_that_is_left(tmp_path: Path) -> None:
    page, free_space = ProgressPage(), FreeSpace({"shared": tmp_path})
    exporter = replace(exporter_of(CollectorRegistry(), page), free_space=free_space)
    with RunLog(tmp_path, resumed_step=0) as log:
        reporter_of(log, exporter=exporter)
    (told,) = asked(page)["filesystems"]
    assert told["name"] == "shared"
    assert 0 < told["freeBytes"] < told["sizeBytes"]
