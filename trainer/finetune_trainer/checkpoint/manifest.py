"""The manifest of a checkpoint: how large each of its files is, and its SHA-256 digest."""

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.digests import digests_of

MANIFEST = "manifest.json"


class DamagedError(Exception):
    """A checkpoint is not what was written; the message says what is wrong with it."""


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The content of manifest.json."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    step: int
    time: str
    files: dict[str, FileEntry]


def write_manifest(directory: Path, step: int, time: str) -> None:
    """Write the manifest of all files of a directory. Raises OSError."""
    paths = sorted(directory.iterdir())
    files = {
        path.name: FileEntry(bytes=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests_of(paths), strict=True)
    }
    manifest = Manifest(step=step, time=time, files=files)
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def verify(directory: Path) -> Manifest:
    """Read every file of a checkpoint, and return its manifest when all are what was written.

    Raises:
        DamagedError: a file is missing, unreadable, or has another size or digest.
    """
    try:
        manifest = Manifest.model_validate_json((directory / MANIFEST).read_bytes())
        for name, entry in manifest.files.items():
            size = (directory / name).stat().st_size
            if size != entry.bytes:
                raise DamagedError(f"{name} has {size} bytes instead of {entry.bytes}")
        digests = digests_of([directory / name for name in manifest.files])
        for (name, entry), digest in zip(manifest.files.items(), digests, strict=True):
            if digest != entry.sha256:
                raise DamagedError(f"the SHA-256 digest of {name} is not that of {MANIFEST}")
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise DamagedError(f"{error.filename or directory}: {error.strerror}") from error
    except ValidationError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error.errors()[0]['msg']}") from error
    return manifest


def describe(directory: Path, shared: Path) -> CheckpointReport:
    """Return what the operator is told of a checkpoint under the shared filesystem's root.

    Raises:
        DamagedError: its manifest cannot be read.
        OSError: likewise.
    """
    content = (directory / MANIFEST).read_bytes()
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise DamagedError(f"{MANIFEST} cannot be read: {error.errors()[0]['msg']}") from error
    return CheckpointReport(
        step=manifest.step,
        time=manifest.time,
        path=str(directory.relative_to(shared)),
        bytes=len(content) + sum(entry.bytes for entry in manifest.files.values()),
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )


def forget_cached(directory: Path) -> None:
    """Let the kernel drop what it keeps of flushed files, so that the next read asks the disk. Raises OSError."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
