"""Directories that are either there and complete, or not there at all, whatever happens while they are written."""

import shutil
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.storage import flush, storage_errors

_PARTIAL, _REPLACED, _DISCARDED = ".partial", ".replaced", ".discarded"


def write_directory(directory: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write a directory aside, flush it to the disk, check it, and rename it over the one that was there.

    Args:
        directory: its final name.
        write: writes the files into the directory that it is given.
        check: raises when what was flushed is not what was written.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE; then, and after any other error, the directory that was
            there before is still there, and nothing else.
    """
    partial, replaced = _aside(directory, _PARTIAL), _aside(directory, _REPLACED)
    with storage_errors(directory):
        _put_back(directory)  # somebody may have been killed between the two renames
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            for path in [*partial.iterdir(), partial]:
                flush(path)
            check(partial)
            if directory.exists():
                directory.rename(replaced)
            partial.rename(directory)
            flush(directory.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _put_back(directory)


def discard(directory: Path) -> None:
    """Take a directory away in one go; `remove_leftovers` removes it file by file. Raises OSError."""
    discarded = _aside(directory, _DISCARDED)
    shutil.rmtree(discarded, ignore_errors=True)
    directory.rename(discarded)


def put_back_replaced(parent: Path) -> None:
    """Give directories that were put aside when somebody was killed their names back. Raises OSError."""
    for replaced in parent.glob(f".*{_REPLACED}"):
        _put_back(parent / replaced.name.removeprefix(".").removesuffix(_REPLACED))


def remove_leftovers(parent: Path) -> None:
    """Remove what was half written when somebody was killed, and what was discarded. Raises OSError."""
    for ending in (_PARTIAL, _DISCARDED):
        for leftover in parent.glob(f".*{ending}"):
            shutil.rmtree(leftover)


def _aside(directory: Path, ending: str) -> Path:
    return directory.with_name(f".{directory.name}{ending}")


def _put_back(directory: Path) -> None:
    """Give a directory that was put aside its name back, unless another has it by now."""
    replaced = _aside(directory, _REPLACED)
    if replaced.exists() and not directory.exists():
        replaced.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)
