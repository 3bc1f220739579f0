"""How far a training has come: what rank 0 serves, and what its last word repeats."""

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from finetune_operator.api.spec import RunPolicy
from finetune_trainer.contract import series
from finetune_trainer.contract.progress import CheckpointReport, FilesystemReport, ProgressReport
from finetune_trainer.contract.termination import (
    MAX_BYTES,
    Reason,
    TerminationMessage,
    read_termination,
    write_termination,
)
from finetune_trainer.exporter import RankZeroExporter, start_exporter
from finetune_trainer.gang import COLLECTIVE_TIMEOUT, Place

CHECKPOINT = CheckpointReport(
    step=10, time="2026-11-23T08:00:00Z", path="jobs/a/b/c/checkpoints/step-10", bytes=4096, digest="sha256:" + "0" * 64
)
PROGRESS = ProgressReport(
    step=12,
    total_steps=30,
    epoch=2,
    loss=1.5,
    learning_rate=2e-4,
    tokens_per_second=1024.0,
    last_step_time="2026-11-23T08:00:07Z",
    resumed_from_step=5,
    checkpoint=CHECKPOINT,
    damaged_checkpoints=("step-6: is damaged, step-5 was used instead",),
    filesystems=(FilesystemReport(name="shared", size_bytes=1000, free_bytes=400),),
)
ON_THE_WIRE = {
    "step": 12,
    "totalSteps": 30,
    "epoch": 2,
    "loss": 1.5,
    "learningRate": 2e-4,
    "tokensPerSecond": 1024.0,
    "lastStepTime": "2026-11-23T08:00:07Z",
    "resumedFromStep": 5,
    "checkpoint": {
        "step": 10,
        "time": "2026-11-23T08:00:00Z",
        "path": "jobs/a/b/c/checkpoints/step-10",
        "bytes": 4096,
        "digest": "sha256:" + "0" * 64,
    },
    "damagedCheckpoints": ["step-6: is damaged, step-5 was used instead"],
    "filesystems": [{"name": "shared", "sizeBytes": 1000, "freeBytes": 400}],
}


def place(rank: int) -> Place:
    return Place(rank, 0, world_size=2, processes_per_node=1, device=torch.device("cpu"))


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_rank_0_serves_its_progress_as_json(port: int) -> None:
    exporter = start_exporter(place(0), port, {})
    assert isinstance(exporter, RankZeroExporter)
    exporter.progress.publish(PROGRESS)
    status, body = get(port)
    assert (status, json.loads(body)) == (200, ON_THE_WIRE)


def test_the_newest_progress_is_served(port: int) -> None:
    exporter = start_exporter(place(0), port, {})
    assert isinstance(exporter, RankZeroExporter)
    for step in (12, 13):
        exporter.progress.publish(PROGRESS.model_copy(update={"step": step}))
    assert json.loads(get(port)[1])["step"] == 13


def test_a_progress_that_has_grown_since_it_was_last_asked_for_is_served_whole(port: int) -> None:
    exporter = start_exporter(place(0), port, {})
    assert isinstance(exporter, RankZeroExporter)
    exporter.progress.publish(PROGRESS.model_copy(update={"checkpoint": None}))
    assert json.loads(get(port)[1])["checkpoint"] is None
    exporter.progress.publish(PROGRESS)
    assert json.loads(get(port)[1]) == ON_THE_WIRE


def test_there_is_no_progress_before_the_training_has_begun(port: int) -> None:
    start_exporter(place(0), port, {})
    assert get(port) == (404, b"no training has begun in this process\n")


def test_there_is_no_progress_on_another_node(port: int) -> None:
    assert not isinstance(start_exporter(place(1), port, {}), RankZeroExporter)
    assert get(port)[0] == 404


def test_the_operator_reads_what_was_served() -> None:
    assert ProgressReport.model_validate_json(json.dumps(ON_THE_WIRE)) == PROGRESS
    assert ProgressReport.model_validate(ON_THE_WIRE | {"colour": "blue"}) == PROGRESS


def test_the_path_is_part_of_the_contract() -> None:
    assert series.PROGRESS_PATH == "/progress"


def test_the_last_word_repeats_the_progress(tmp_path: Path) -> None:
    message = TerminationMessage(reason=Reason.TERMINATED, message="stopped by SIGTERM", progress=PROGRESS)
    write_termination(tmp_path / "log", message)
    assert json.loads((tmp_path / "log").read_text())["progress"] == ON_THE_WIRE
    assert read_termination((tmp_path / "log").read_text()) == message


def test_many_damaged_checkpoints_leave_room_for_everything_else(tmp_path: Path) -> None:
    damages = tuple(f"step-{step}: is damaged, and a long story of how that came about" for step in range(100))
    progress = PROGRESS.model_copy(update={"damaged_checkpoints": damages})
    write_termination(
        tmp_path / "log", TerminationMessage(reason=Reason.TERMINATED, message="stopped", progress=progress)
    )
    assert (tmp_path / "log").stat().st_size <= MAX_BYTES
    message = read_termination((tmp_path / "log").read_text())
    assert message is not None
    assert message.progress == PROGRESS.model_copy(
        update={"damaged_checkpoints": ("100 checkpoints; each is in training.log",)}
    )


def test_a_process_that_waits_in_vain_says_so_before_the_operator_gives_the_gang_up() -> None:
    assert COLLECTIVE_TIMEOUT.total_seconds() < RunPolicy().stall_timeout_seconds
