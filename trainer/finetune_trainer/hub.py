"""Models and data sets from the Hugging Face Hub into the cache on the shared filesystem.

A revision is pinned to a commit first; what is fetched of that commit is fetched once, for every job on the
filesystem. Only the files that are needed are fetched.
"""

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import DatasetInfo, HfApi, ModelInfo, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer import cache
from finetune_trainer.contract.environment import HUGGING_FACE_ENDPOINT, HUGGING_FACE_TOKEN
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.template import TOKENIZER_FILES
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors
from finetune_trainer.weights import SHARDS, WHOLE_FILE, weight_file_names

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
Result = TypeVar("Result")
PUBLIC_HUB = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")

# What a model needs besides its weights, which follow once these were found good.
SMALL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", "LICENSE*", *TOKENIZER_FILES)

NUM_CONNECTIONS = 4
RETRY_DELAYS_SECONDS = (2.0, 5.0, 15.0, 30.0)
PROGRESS_INTERVAL_SECONDS = 10.0
# After these, what has arrived is kept for the next try; after anything else, a full disk for one, nothing.
RESUMABLE = frozenset({Reason.MODEL_UNAVAILABLE, Reason.DATA_UNAVAILABLE})
# Where huggingface_hub keeps its books, and files that are on their way; removed before publication.
BOOKKEEPING = ".cache"


@dataclass(frozen=True)
class Hub:
    """Which Hub, and with whose rights."""

    endpoint: str | None = None
    token: str | None = None
    retry_delays_seconds: tuple[float, ...] = RETRY_DELAYS_SECONDS

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Hub":
        """Return the Hub that HF_ENDPOINT and HF_TOKEN name.

        A Secret made of a file or with `echo` often ends in a line break, which is no part of the token.
        NB: an HTTP library that is given what no header can hold names it in its error, so a secret would be told.

        Raises:
            TrainerError: INVALID_SPEC when the token holds what no token does.
        """
        token = environment.get(HUGGING_FACE_TOKEN, "").strip()
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise TrainerError(
                Reason.INVALID_SPEC,
                f"{HUGGING_FACE_TOKEN} in the Secret that spec.secretName names holds a space, a line break or a "
                "letter that no token has: write the token alone into it",
            )
        return cls(environment.get(HUGGING_FACE_ENDPOINT), token or None)


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit, with their sizes in bytes."""

    kind: Kind
    repository: str
    commit: str
    sizes: dict[str, int]

    @property
    def entry_name(self) -> str:
        """What the cache calls it: `<owner>--<name>@<commit>`."""
        return f"{self.repository.replace('/', '--')}@{self.commit}"


def cached_model(models: Path, repository: str, revision: str) -> Path | None:
    """Return the directory of a model that is named by its commit and is in the cache: no need to ask the Hub."""
    entry = models / f"{repository.replace('/', '--')}@{revision}"
    return entry if COMMIT.fullmatch(revision) and cache.is_ready(entry) else None


def look_up(hub: Hub, kind: Kind, repository: str, revision: str) -> Snapshot:
    """Pin a revision to a commit, and list its files.

    Raises:
        TrainerError: MODEL_UNAVAILABLE or DATA_UNAVAILABLE, with what to do.
    """
    api = HfApi(endpoint=hub.endpoint, token=hub.token or False)

    def ask() -> ModelInfo | DatasetInfo:
        if kind == "model":
            return api.model_info(repository, revision=revision, files_metadata=True)
        return api.dataset_info(repository, revision=revision, files_metadata=True)

    info = _patiently(hub, kind, repository, revision, ask)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    _check_names(hub, kind, repository, str(info.sha), sizes)
    return Snapshot(kind, repository, str(info.sha), sizes)


def _check_names(hub: Hub, kind: Kind, repository: str, commit: str, names: Iterable[str]) -> None:
    """Refuse what a Hub, or a mirror of it, calls a commit or a file and what would lead out of the cache.

    Both become names on the shared filesystem; huggingface_hub joins a file's name to its directory as it is.
    """
    endpoint = hub.endpoint or PUBLIC_HUB
    if not COMMIT.fullmatch(commit):
        raise _unavailable(kind, f"{repository}: {endpoint} calls the commit {commit!r}, which is none")
    for name in names:
        if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise _unavailable(
                kind,
                f"{repository}: {endpoint} lists a file that would leave the repository, {name!r}; nothing is fetched",
            )


def fetch_model(hub: Hub, snapshot: Snapshot, models: Path, check: Callable[[Path], object]) -> Path:
    """Return the directory of a model in the cache, downloading it when it is not there.

    Args:
        hub: where to download from.
        snapshot: of the model's repository.
        models: the model cache.
        check: called with the directory once the small files are there, before the weights; raises to refuse.

    Raises:
        TrainerError: MODEL_UNAVAILABLE, MODEL_UNSUPPORTED, STORAGE_FULL, or what `check` raises.
    """
    weights = weight_file_names(snapshot.sizes)
    if not weights:
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{snapshot.repository}: has no {WHOLE_FILE} or {SHARDS}; weights in other formats (.bin, .pth, .gguf) "
            "are not read",
        )

    def fill(directory: Path) -> None:
        _download(hub, snapshot, _matching(snapshot, SMALL_FILES), directory)
        check(directory)
        _download(hub, snapshot, weights, directory)

    return _fetch(models / snapshot.entry_name, fill)


def fetch_files(hub: Hub, snapshot: Snapshot, names: list[str], entry: Path) -> Path:
    """Return a directory with some files of a snapshot, downloading them when it is not there.

    Raises:
        TrainerError: DATA_UNAVAILABLE or MODEL_UNAVAILABLE, STORAGE_FULL.
    """
    return _fetch(entry, lambda directory: _download(hub, snapshot, names, directory))


def _fetch(entry: Path, fill: Callable[[Path], None]) -> Path:
    if cache.is_ready(entry):
        logger.info("%s is in the cache", entry.name)
        return entry
    with storage_errors(entry.parent), cache.locked(entry):
        if cache.is_ready(entry):  # made by the one whom we waited for
            return entry
        partial = cache.partial_directory(entry)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            fill(partial)
        except (OSError, TrainerError) as error:
            resumable = isinstance(error, TrainerError) and error.reason in RESUMABLE
            if not (resumable and _something_arrived(partial)):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial / BOOKKEEPING, ignore_errors=True)
        cache.publish(entry)
    return entry


def _something_arrived(partial: Path) -> bool:
    files = [file for file in partial.rglob("*") if file.is_file()]
    return any(file.suffix == ".incomplete" or BOOKKEEPING not in str(file.relative_to(partial)) for file in files)


def _matching(snapshot: Snapshot, patterns: Iterable[str]) -> list[str]:
    return [name for name in snapshot.sizes if any(fnmatch(name, pattern) for pattern in patterns)]


def _download(hub: Hub, snapshot: Snapshot, names: list[str], directory: Path) -> None:
    missing = [name for name in names if not _is_complete(directory / name, snapshot.sizes[name])]
    num_bytes = sum(snapshot.sizes[name] for name in missing)
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        raise TrainerError(
            Reason.STORAGE_FULL,
            f"{snapshot.repository}: {_size(num_bytes)} have to be downloaded, but the shared filesystem has "
            f"{_size(free)} left. Make the volume larger or remove files",
        )
    if missing:
        label = f"{snapshot.repository}@{snapshot.commit[:8]}"
        what = missing[0] if len(missing) == 1 else f"{len(missing)} files"
        logger.info("%s: downloading %s, %s", label, what, _size(num_bytes))
        with _progress(directory, label, num_bytes):
            _for_each(missing, lambda name: _download_file(hub, snapshot, name, directory))


def _download_file(hub: Hub, snapshot: Snapshot, name: str, directory: Path) -> None:
    def download() -> str:
        return hf_hub_download(
            snapshot.repository,
            name,
            repo_type=snapshot.kind,
            revision=snapshot.commit,
            local_dir=directory,
            endpoint=hub.endpoint,
            token=hub.token or False,
        )

    _patiently(hub, snapshot.kind, snapshot.repository, snapshot.commit, download)
    # NB: without a connection hf_hub_download may return a file that it did not finish.
    if not _is_complete(directory / name, snapshot.sizes[name]):
        raise _unavailable(snapshot.kind, f"{snapshot.repository}: {name} arrived incomplete; try again")


def _for_each(names: list[str], work: Callable[[str], None]) -> None:
    """Do a work for several files at once; after a failure none is begun."""
    pool = ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="download")
    waits = True
    try:
        for _ in pool.map(work, names):
            pass
    except BaseException as error:
        # Whoever is stopped does not wait for the files that are on their way.
        waits = isinstance(error, Exception)
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def _is_complete(file: Path, num_bytes: int) -> bool:
    return file.is_file() and file.stat().st_size == num_bytes


@contextmanager
def _progress(directory: Path, label: str, num_bytes: int) -> Iterator[None]:
    """Log how much has arrived, every ten seconds."""
    started, before = time.monotonic(), _bytes_under(directory)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(PROGRESS_INTERVAL_SECONDS):
            arrived = _bytes_under(directory) - before
            rate = _size(arrived / (time.monotonic() - started))
            percent = 100 * arrived / max(num_bytes, 1)
            logger.info("%s: %s of %s (%.0f %%), %s/s", label, _size(arrived), _size(num_bytes), percent, rate)

    thread = threading.Thread(target=watch, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    logger.info("%s: downloaded %s in %.1f s", label, _size(num_bytes), time.monotonic() - started)


def _size(num_bytes: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes / 1e3:.1f} kB"


def _bytes_under(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # renamed between listing and looking
            continue
    return total


# --- what can go wrong ------------------------------------------------------------------------------------------------

# NB: the base class of HTTP and connection errors is httpx's in some versions of huggingface_hub, httpx2's in others.
_HttpError: type[Exception] = HfHubHTTPError.__bases__[0]


def _patiently(hub: Hub, kind: Kind, repository: str, revision: str, request: Callable[[], Result]) -> Result:
    """Run a request, again after a pause when the Hub or the way to it is at fault."""
    for delay_seconds in (*hub.retry_delays_seconds, None):
        try:
            return request()
        except (_HttpError, OSError) as error:
            if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
                raise  # the filesystem's
            if delay_seconds is None or not _may_pass(error):
                raise _explained(hub, kind, repository, revision, error) from error
            logger.warning("%s: %s; trying again in %.0f s", repository, _first_line(error), delay_seconds)
            time.sleep(delay_seconds)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _explained(hub: Hub, kind: Kind, repository: str, revision: str, error: Exception) -> TrainerError:
    endpoint = hub.endpoint or PUBLIC_HUB
    page = f"{PUBLIC_HUB}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    secret = "HF_TOKEN in the Secret that spec.secretName names"
    match error:
        case GatedRepoError() if hub.token:
            what = f"is gated, and the token's account has no access: accept the licence at {page} with that account"
        case GatedRepoError():
            what = f"is gated: accept its licence at {page}, and put a token of that account as {secret}"
        case RevisionNotFoundError():
            what = f"has no branch, tag or commit {revision!r}"
        case RepositoryNotFoundError():
            what = f"there is no such {kind} on {endpoint}, or it is private: check the name, and {secret}"
        case LocalEntryNotFoundError():
            what = f"{endpoint} cannot be reached, or broke off: {_first_line(error.__cause__ or error)}"
        case HfHubHTTPError() if _status(error) in (401, 403):
            what = f"{endpoint} refuses the token: check {secret}"
        case HfHubHTTPError():
            what = f"{endpoint} answers {_first_line(error)}"
        case _:
            what = f"{endpoint} cannot be reached, or broke off: {_first_line(error)}"
    return _unavailable(kind, f"{repository}: {what}")


def _unavailable(kind: Kind, message: str) -> TrainerError:
    return TrainerError(Reason.MODEL_UNAVAILABLE if kind == "model" else Reason.DATA_UNAVAILABLE, message)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
