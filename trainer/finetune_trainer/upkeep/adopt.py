"""Copies a checkpoint of one job to another, so that the other one goes on from it."""

import shutil
from pathlib import Path

from finetune_trainer.checkpoint.directory import write_directory
from finetune_trainer.checkpoint.layout import directory_of, find_checkpoints
from finetune_trainer.checkpoint.manifest import DamagedError, describe, verify
from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors

_CHECKPOINTS = "checkpoints"


def adopt(source_job: Path, target_job: Path, step: int, shared: Path) -> CheckpointReport:
    """Copy a checkpoint, read the copy back, and say what was copied.

    Args:
        source_job: directory of the job that wrote it.
        target_job: directory of the job that is to go on from it; made where it is not there.
        step: which.
        shared: the shared filesystem's root.

    Raises:
        TrainerError: CHECKPOINT_UNUSABLE, it is not there or damaged; STORAGE_FULL or STORAGE_NOT_WRITABLE.
    """
    _require_inside(shared, source_job, target_job)
    source = directory_of(source_job / _CHECKPOINTS, step)
    target = directory_of(target_job / _CHECKPOINTS, step)
    try:
        if not source.is_dir():
            raise TrainerError(Reason.CHECKPOINT_UNUSABLE, _missing(source_job / _CHECKPOINTS, step))
        verify(source)
        write_directory(target, lambda partial: _copy(source, partial), _check)
        with storage_errors(target):
            return describe(target, shared)
    except DamagedError as error:
        raise TrainerError(Reason.CHECKPOINT_UNUSABLE, f"{source.name} is damaged: {error}") from error


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def _check(directory: Path) -> None:
    verify(directory)


def _missing(checkpoints: Path, step: int) -> str:
    there = ", ".join(path.name.rpartition("-")[2] for path in reversed(find_checkpoints(checkpoints)))
    return f"there is no checkpoint of step {step}; there are those of steps {there or '(none)'}"


def _require_inside(shared: Path, *jobs: Path) -> None:
    for job in jobs:
        if not job.resolve().is_relative_to((shared / "jobs").resolve()):
            raise TrainerError(Reason.INVALID_SPEC, f"{job} is no directory of a job on the shared filesystem")
