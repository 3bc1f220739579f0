"""Faults of a filesystem that a person can mend."""

import errno
import os
from pathlib import Path

import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors

FAULTS = {
    "a full disk": (errno.ENOSPC, Reason.STORAGE_FULL, "larger"),
    "a quota": (errno.EDQUOT, Reason.STORAGE_FULL, "larger"),
    "a directory of another user": (errno.EACCES, Reason.STORAGE_NOT_WRITABLE, "fsGroup"),
    "a file larger than it may be": (errno.EFBIG, Reason.STORAGE_FULL, "larger"),
    "a read-only filesystem": (errno.EROFS, Reason.STORAGE_NOT_WRITABLE, "fsGroup"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_filesystem_says_what_to_do(case: str, tmp_path: Path) -> None:
    number, reason, advice = FAULTS[case]
    with pytest.raises(TrainerError) as error, storage_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert error.value.reason is reason
    assert str(tmp_path) in error.value.message
    assert advice in error.value.message


def test_another_fault_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), storage_errors(tmp_path):
        tmp_path.read_text()
