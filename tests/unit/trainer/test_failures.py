import json
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.failures import explain, first_failure, read_progress, write_failure, write_progress

GLOO = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]:1")
EXPLANATIONS = {
    "our own error stays": (TrainerError(Reason.STORAGE_FULL, "disk"), Reason.STORAGE_FULL, "^disk$"),
    "gloo lost a peer": (GLOO, Reason.COLLECTIVE_FAILED, "another process was lost.*Connection closed by peer"),
    "gloo waited in vain": (
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1200000ms for recv "
            "operation to complete"
        ),
        Reason.COLLECTIVE_FAILED,
        "another process was lost, or the network between them: .*Timed out waiting 1200000ms",
    ),
    "nccl lost a peer": (dist.DistBackendError("NCCL error"), Reason.COLLECTIVE_FAILED, "NCCL error"),
    "the GPU is full": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nsee documentation"),
        Reason.OUT_OF_GPU_MEMORY,
        r"^CUDA out of memory\. Tried to allocate 2 GiB\. It fits with less$",
    ),
    "a bug": (ZeroDivisionError("division by zero"), Reason.ERROR, "^ZeroDivisionError: division by zero$"),
}


@pytest.mark.parametrize(("error", "reason", "message"), EXPLANATIONS.values(), ids=EXPLANATIONS.keys())
def test_an_error_is_explained(error: Exception, reason: Reason, message: str) -> None:
    explained = explain(error, lambda: "It fits with less")
    assert explained.reason is reason
    assert re.search(message, explained.message)


def test_an_error_nobody_has_foreseen_is_told_with_the_line_that_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "rank-0.json").write_text("no JSON")
    with pytest.raises(json.JSONDecodeError) as caught:
        first_failure(tmp_path, {0: 1})
    explained = explain(caught.value, lambda: "It fits with less")
    assert re.search(r"^JSONDecodeError: .* \(in <genexpr>, failures\.py:\d+\)$", explained.message)


def test_the_cause_comes_before_the_lost_connections_that_follow_from_it(tmp_path: Path) -> None:
    write_failure(tmp_path, 0, TrainerError(Reason.COLLECTIVE_FAILED, "peer lost"))
    write_failure(tmp_path, 1, TrainerError(Reason.DIVERGED, "loss is nan", step=7, checkpoint="step-5"))
    failure = first_failure(tmp_path, {0: 1, 1: 1})
    assert (failure.reason, failure.message, failure.rank) == (Reason.DIVERGED, "loss is nan", 1)
    assert (failure.step, failure.checkpoint) == (7, "step-5")


def test_of_two_causes_the_earlier_is_told(tmp_path: Path) -> None:
    for rank, seconds in ((0, 20.0), (1, 10.0)):
        write_failure(tmp_path, rank, TrainerError(Reason.ERROR, f"rank {rank}"))
        path = tmp_path / f"rank-{rank}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": seconds}))
    assert first_failure(tmp_path, {0: 1, 1: 1}).rank == 1


def test_a_killed_process_explains_the_connections_that_others_lost(tmp_path: Path) -> None:
    write_failure(tmp_path, 0, TrainerError(Reason.COLLECTIVE_FAILED, "peer lost"))
    failure = first_failure(tmp_path, {0: 1, 1: -signal.SIGKILL})
    assert (failure.reason, failure.rank) == (Reason.KILLED, 1)
    assert failure.message == (
        "process 1 was killed by SIGKILL: if its pod had reached its memory limit, raise "
        "compute.resources.limits.memory; if not, somebody ended it on its node"
    )


def test_a_process_that_the_agent_stopped_is_not_the_cause(tmp_path: Path) -> None:
    write_failure(tmp_path, 0, TrainerError(Reason.COLLECTIVE_FAILED, "peer on another node lost"))
    failure = first_failure(tmp_path, {0: 1, 1: -signal.SIGTERM})
    assert (failure.reason, failure.rank) == (Reason.COLLECTIVE_FAILED, 0)


def test_a_process_that_exits_without_a_word_is_named(tmp_path: Path) -> None:
    failure = first_failure(tmp_path, {3: 41})
    assert (failure.reason, failure.message, failure.rank) == (Reason.ERROR, "process 3 exited with code 41", 3)


def test_a_node_whose_processes_were_all_stopped_from_outside_says_so(tmp_path: Path) -> None:
    failure = first_failure(tmp_path, {0: -signal.SIGTERM})
    assert (failure.reason, failure.message) == (Reason.TERMINATED, "process 0 was killed by SIGTERM")


def test_a_process_that_nccls_watchdog_aborted_lost_its_peers(tmp_path: Path) -> None:
    failure = first_failure(tmp_path, {5: -signal.SIGABRT})
    assert (failure.reason, failure.rank) == (Reason.COLLECTIVE_FAILED, 5)
    assert failure.message == (
        "process 5 aborted, as NCCL does when another process was lost or does not answer; its log says more"
    )


def test_the_last_progress_outlives_the_process_that_left_it(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    for step in (1, 2):
        write_progress(tmp_path, ProgressReport(step=step, total_steps=9, epoch=1))
    assert read_progress(tmp_path) == ProgressReport(step=2, total_steps=9, epoch=1)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
