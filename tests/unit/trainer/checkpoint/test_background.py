import threading
from collections.abc import Callable

import pytest
import torch

from finetune_trainer.checkpoint.background import BackgroundCheckpoints, Checkpoints, Written
from finetune_trainer.checkpoint.content import Progress, Tensors
from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

Write = Callable[[Tensors, Progress], CheckpointReport]
FULL = TrainerError(Reason.STORAGE_FULL, "step-1: cannot be written")


def report_of(step: int) -> CheckpointReport:
    return CheckpointReport(step=step, time="2026-11-23T08:00:00Z", path=f"step-{step}", bytes=1, digest="sha256:00")


class Disk:
    """A disk that takes its time: it writes when it is let."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.written: list[tuple[int, float]] = []

    def write(self, tensors: Tensors, progress: Progress) -> CheckpointReport:
        assert self.may_write.wait(10)
        self.written.append((progress.step, tensors["w"].item()))
        return report_of(progress.step)


def test_a_checkpoint_has_the_values_of_the_moment_at_which_it_was_taken() -> None:
    disk, weight = Disk(), torch.zeros(1)
    told: list[Written] = []
    with BackgroundCheckpoints({"w": weight}, disk.write, told.append) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.wait_before_change()
            weight.fill_(step)
            if step == 1:
                checkpoints.take(Progress(step))
        checkpoints.tell()
        assert told == []
        disk.may_write.set()
    assert disk.written == [(1, 1.0)]
    assert [written.report.step for written in told] == [1]


def test_the_training_goes_on_while_a_checkpoint_is_written() -> None:
    disk, weight = Disk(), torch.zeros(1)
    with BackgroundCheckpoints({"w": weight}, disk.write, lambda _: None) as checkpoints:
        checkpoints.take(Progress(1))
        checkpoints.wait_before_change()  # returns, though nothing may be written yet
        assert disk.written == []
        disk.may_write.set()


def test_at_most_one_checkpoint_is_under_way() -> None:
    disk, weight = Disk(), torch.zeros(1)
    told: list[Written] = []
    with BackgroundCheckpoints({"w": weight}, disk.write, told.append) as checkpoints:
        checkpoints.take(Progress(1))
        threading.Timer(0.05, disk.may_write.set).start()
        checkpoints.take(Progress(2))
        assert [step for step, _ in disk.written][:1] == [1]
        assert [written.report.step for written in told] == [1]
    assert [written.report.step for written in told] == [1, 2]
    assert told[1].stalled_seconds >= 0.03


def fail(_: Tensors, __: Progress) -> CheckpointReport:
    raise FULL


def run(write: Write, after: Callable[[BackgroundCheckpoints], None]) -> None:
    """A training that takes one checkpoint and then does something else."""
    with BackgroundCheckpoints({"w": torch.zeros(1)}, write, lambda _: None) as checkpoints:
        checkpoints.take(Progress(1))
        after(checkpoints)


def do_steps(checkpoints: BackgroundCheckpoints) -> None:
    pause = threading.Event()
    for _ in range(100):
        checkpoints.tell()
        pause.wait(0.05)
    pytest.fail("no step told of the failure")


def fail_to_train(_: BackgroundCheckpoints) -> None:
    raise ZeroDivisionError


def test_a_checkpoint_that_could_not_be_written_is_told_at_the_next_step() -> None:
    with pytest.raises(TrainerError, match=r"^step-1: cannot be written$"):
        run(fail, do_steps)


def test_the_last_checkpoint_is_waited_for_and_its_failure_told() -> None:
    with pytest.raises(TrainerError, match=r"^step-1: cannot be written$"):
        run(fail, lambda _: None)


def test_a_checkpoint_under_way_is_completed_when_the_training_fails() -> None:
    disk = Disk()
    threading.Timer(0.05, disk.may_write.set).start()
    with pytest.raises(ZeroDivisionError):
        run(disk.write, fail_to_train)
    assert disk.written == [(1, 0.0)]


def test_the_error_of_the_training_comes_before_that_of_its_last_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(fail, fail_to_train)
    assert capsys.readouterr().err == "warning: the last checkpoint was not written: step-1: cannot be written\n"


def test_every_process_but_rank_0_takes_none() -> None:
    threads = threading.active_count()
    with Checkpoints() as checkpoints:
        checkpoints.take(Progress(1))
        assert threading.active_count() == threads  # nobody writes
        checkpoints.wait_before_change()
        checkpoints.tell()
        checkpoints.wait()
