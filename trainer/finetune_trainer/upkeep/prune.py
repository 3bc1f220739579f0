"""Models and data sets in the cache of the shared filesystem that no job names: told, and on request removed.

Only what this trainer has put there itself is looked at: directories with the cache's names, and those that it has not
finished. What a person has laid beside them, and everything under jobs/, is never touched.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_trainer import cache
from finetune_trainer.contract.report import Report
from finetune_trainer.storage import storage_errors

# `hub.Snapshot.entry_name` and what `prepare` adds to it; `prepare.data_digest`.
_OF_HUB = re.compile(r"(?P<repository>[^@/]+)@[0-9a-f]{40}(\.[0-9a-z]+)?")
_PACKED = re.compile(r"[0-9a-f]{32}")
# Not finished yet, or taken away by somebody who was killed before all of it was gone.
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<what>partial|discarded)")


class Fate(StrEnum):
    """What becomes of an entry."""

    KEPT = "kept"
    BUSY = "busy"
    UNUSED = "unused"
    REMOVED = "removed"


@dataclass(frozen=True)
class Jobs:
    """The jobs that there are, as whoever asks has seen them."""

    namespace: str
    listed_at: datetime
    uids: frozenset[str]
    """Of this namespace's jobs; the directory of any other one of it is of a job that is gone."""
    paths: frozenset[str]
    """Directories that they name, relative to the shared filesystem's root."""
    repositories: frozenset[str]
    """Of models and data sets that they name, as `owner/name`."""


class Entry(BaseModel):
    """One directory of the cache."""

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int
    fate: Fate
    why: str


class _Prepared(Report):
    """What is read of a job's prepared.json, whichever version wrote it."""

    model_path: str
    data_path: str


def prune(shared: Path, jobs: Jobs, *, remove: bool) -> Iterator[Entry]:
    """Yield every entry of the cache with what becomes of it; with `remove`, what is unused is gone by then.

    Raises:
        TrainerError: STORAGE_NOT_WRITABLE.
    """
    for path in _entries(shared):
        with storage_errors(path):
            yield _judged(shared, path, jobs, remove=remove)


def _entries(shared: Path) -> list[Path]:
    """Return the directories that this trainer has made, finished or not, by name."""
    found = []
    for parent, pattern in (("models", _OF_HUB), ("datasets/sources", _OF_HUB), ("datasets", _PACKED)):
        for path in sorted((shared / parent).glob("*")):
            aside = _ASIDE.fullmatch(path.name)
            name = aside["name"] if aside else path.name
            is_made_here = aside is not None or (path / cache.READY_FILE).is_file()
            if path.is_dir() and not path.is_symlink() and is_made_here and pattern.fullmatch(name):
                found.append(path)
    return found


def _judged(shared: Path, path: Path, jobs: Jobs, *, remove: bool) -> Entry:
    relative, num_bytes = str(path.relative_to(shared)), _num_bytes(path)
    aside = _ASIDE.fullmatch(path.name)
    entry = path.with_name(aside["name"]) if aside else path
    is_rest = aside is not None and aside["what"] == "discarded"
    if not is_rest and (why := _why_named(shared, entry, jobs)):
        return Entry(path=relative, bytes=num_bytes, fate=Fate.KEPT, why=why)
    with cache.locked_if_free(entry) as locked:
        if not locked:
            return Entry(path=relative, bytes=num_bytes, fate=Fate.BUSY, why="a job prepares it now")
        # Whoever has waited for the lock may have named it meanwhile.
        if not is_rest and (why := _why_named(shared, entry, jobs)):
            return Entry(path=relative, bytes=num_bytes, fate=Fate.KEPT, why=why)
        what = "the rest of one that was removed" if is_rest else "no job names it"
        if aside is not None and not is_rest:
            what = "was never finished, and no job names it"
        if not remove:
            return Entry(path=relative, bytes=num_bytes, fate=Fate.UNUSED, why=what)
        _remove(path)
        return Entry(path=relative, bytes=num_bytes, fate=Fate.REMOVED, why=what)


def _why_named(shared: Path, entry: Path, jobs: Jobs) -> str | None:
    """Return who names an entry, or None when nobody does."""
    relative = str(entry.relative_to(shared))
    if any(f"{path}/".startswith(f"{relative}/") or relative.startswith(f"{path}/") for path in jobs.paths):
        return "a job names it"
    named = _OF_HUB.fullmatch(entry.name)
    if named and any(named["repository"] == name.replace("/", "--") for name in jobs.repositories):
        return "a job names its repository"
    for prepared in (shared / "jobs").glob("*/*/*/prepared.json"):
        if _counts(prepared, shared, jobs) and relative in _paths_in(prepared):
            return f"{prepared.parent.relative_to(shared)} was prepared from it"
    return None


def _counts(prepared: Path, shared: Path, jobs: Jobs) -> bool:
    """Whether the job of a prepared.json may still be there: unless its namespace was asked, and does not have it."""
    namespace, _, uid = prepared.parent.relative_to(shared / "jobs").parts
    written_at = datetime.fromtimestamp(prepared.stat().st_mtime, UTC)
    return namespace != jobs.namespace or uid in jobs.uids or written_at >= jobs.listed_at


def _paths_in(prepared: Path) -> tuple[str, ...]:
    try:
        report = _Prepared.model_validate_json(prepared.read_text(encoding="utf-8"))
    except (ValidationError, OSError):
        return ()
    return report.model_path, report.data_path


def _remove(path: Path) -> None:
    """Take a directory away in one go, so that nobody ever sees a part of it under its name. Raises OSError."""
    aside = _ASIDE.fullmatch(path.name)
    discarded = path.with_name(f".{aside['name'] if aside else path.name}.discarded")
    if path != discarded:
        shutil.rmtree(discarded, ignore_errors=True)
        path.rename(discarded)
    shutil.rmtree(discarded)


def _num_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
