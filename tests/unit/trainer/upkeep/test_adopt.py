"""A checkpoint of one job becomes that of another."""

from pathlib import Path

import pytest

from finetune_trainer.checkpoint.manifest import verify, write_manifest
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.upkeep.adopt import adopt
from finetune_trainer.upkeep.command import main

OLD, NEW = Path("jobs/team/old/uid-1"), Path("jobs/team/new/uid-2")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    for step in (4, 8):
        directory = tmp_path / OLD / "checkpoints" / f"step-{step}"
        directory.mkdir(parents=True)
        (directory / "adapter_model.safetensors").write_bytes(bytes([step]) * 1000)
        (directory / "trainer_state.json").write_text("{}")
        write_manifest(directory, step, "2026-11-27T12:00:00Z")
    return tmp_path


def test_the_copy_is_what_was_written_and_the_old_one_stays(shared: Path) -> None:
    report = adopt(shared / OLD, shared / NEW, 4, shared)
    copied = shared / NEW / "checkpoints" / "step-4"
    assert (report.step, report.path) == (4, "jobs/team/new/uid-2/checkpoints/step-4")
    assert verify(copied).step == 4
    assert (copied / "adapter_model.safetensors").read_bytes() == b"\x04" * 1000
    assert verify(shared / OLD / "checkpoints" / "step-4").step == 4


def test_only_the_step_that_was_asked_for_is_copied(shared: Path) -> None:
    adopt(shared / OLD, shared / NEW, 4, shared)
    assert [path.name for path in (shared / NEW / "checkpoints").iterdir()] == ["step-4"]


def test_a_step_that_is_not_there_names_those_that_are(shared: Path) -> None:
    with pytest.raises(TrainerError, match="no checkpoint of step 6; there are those of steps 4, 8"):
        adopt(shared / OLD, shared / NEW, 6, shared)


def test_a_damaged_checkpoint_is_not_copied(shared: Path) -> None:
    (shared / OLD / "checkpoints/step-8/adapter_model.safetensors").write_bytes(b"\x00" * 1000)
    with pytest.raises(TrainerError, match="step-8 is damaged") as failure:
        adopt(shared / OLD, shared / NEW, 8, shared)
    assert failure.value.reason is Reason.CHECKPOINT_UNUSABLE
    assert not (shared / NEW / "checkpoints" / "step-8").exists()


@pytest.mark.parametrize("elsewhere", ["../outside", "models/x", "jobs/../models"])
def test_a_directory_that_is_none_of_a_job_is_refused(shared: Path, elsewhere: str) -> None:
    with pytest.raises(TrainerError, match="no directory of a job"):
        adopt(shared / OLD, shared / elsewhere, 4, shared)


def test_the_command_says_what_it_copied_or_ends_with_1(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adopt", "--shared", str(shared), "--from", str(OLD), "--to", str(NEW)]
    assert main([*words, "--step", "8"]) == 0
    assert "checkpoint of step 8 copied to jobs/team/new/uid-2/checkpoints/step-8" in capsys.readouterr().out
    assert main([*words, "--step", "5"]) == 1
    assert "CheckpointUnusable" in capsys.readouterr().err
