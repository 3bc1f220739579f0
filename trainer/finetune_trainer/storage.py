"""The two filesystems: what a person has to do when one cannot be written, and writes that outlive a lost node."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the error of a full, read-only or foreign filesystem into one that says where it was and what to do.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE; any other error is passed on.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise TrainerError(
                Reason.STORAGE_FULL,
                f"{path}: cannot be written: {error.strerror}. Make the volume larger, or remove files",
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise TrainerError(
                Reason.STORAGE_NOT_WRITABLE,
                f"{path}: cannot be written by user {os.getuid()}: {error.strerror}. The volume has to be mounted "
                "writable, and to belong to the pod's fsGroup",
            ) from error
        raise


def flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
