"""Directories on the shared filesystem that are made once and used by every job.

A directory is built under a name of its own, aside, while a lock is held; when it is complete it gets a mark that says
so and then, by a rename, its name. Whoever dies on the way leaves nothing that looks complete, and the lock goes with
the process that held it.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from finetune_trainer.storage import flush

logger = logging.getLogger(__name__)

READY_FILE = "READY"
REMIND_INTERVAL_SECONDS = 30.0


def is_ready(entry: Path) -> bool:
    """Whether a directory is complete: its mark is there, and each file has the size that the mark says."""
    try:
        sizes: dict[str, int] = json.loads((entry / READY_FILE).read_text(encoding="utf-8"))
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock of a directory; wait, and say so, while another process builds it."""
    lock_file = entry.parent / ".locks" / f"{entry.name}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    # NB: the fallback of filelock, a file that must not exist, would outlive a process that was killed.
    lock = FileLock(lock_file, fallback_to_soft=False, mode=0o664)
    seconds = 0.0
    while True:
        try:
            lock.acquire(timeout=REMIND_INTERVAL_SECONDS if seconds else 0, poll_interval=0.2)
            break
        except Timeout:
            waited = f" ({seconds:.0f} s so far)" if seconds else ""
            logger.info("waiting for another job that prepares %s%s", entry.name, waited)
            seconds += REMIND_INTERVAL_SECONDS
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(entry: Path) -> Iterator[bool]:
    """Hold the lock of a directory unless another process has it; yields whether it is held."""
    lock_file = entry.parent / ".locks" / f"{entry.name}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file, fallback_to_soft=False, mode=0o664)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def partial_directory(entry: Path) -> Path:
    """Where a directory is built: beside its place, under a name that says that it is not complete."""
    return entry.with_name(f".{entry.name}.partial")


def publish(entry: Path) -> None:
    """Give a directory that was built aside its name. What was there before, and was not ready, is removed."""
    partial = partial_directory(entry)
    sizes = {
        str(file.relative_to(partial)): file.stat().st_size for file in sorted(partial.rglob("*")) if file.is_file()
    }
    for name in sizes:
        flush(partial / name)
    (partial / READY_FILE).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    flush(partial / READY_FILE)
    shutil.rmtree(entry, ignore_errors=True)
    partial.rename(entry)
    flush(entry.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        aside.rename(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
