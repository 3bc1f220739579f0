"""Repositories on disk: content-addressed blobs, immutable commits, and the branch `main` that points at one of them.

    <root>/blobs/<sha256>
    <root>/<kind>/<organisation>/<name>/commits/<commit>.json     the files of one commit
    <root>/<kind>/<organisation>/<name>/refs/main                 the commit that `main` is at
    <root>/<kind>/<organisation>/<name>/settings.json             the fields of Settings

A reader never sees half of a publication: blobs come first, then the commit, and `main` moves last, each by a rename.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

RepositoryKind = Literal["models", "datasets"]
KINDS: tuple[RepositoryKind, ...] = ("models", "datasets")

READ_CHUNK_BYTES = 1 << 20
LFS_THRESHOLD_BYTES = 1 << 20
_NAME_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


class UnknownRepositoryError(LookupError):
    """No repository of this kind has this name."""


class UnknownRevisionError(LookupError):
    """The repository has neither a branch nor a commit of this name."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit: its path in the repository, its length, and the two digests the Hub tells clients."""

    path: str
    size_bytes: int
    git_sha1: str
    sha256: str

    @property
    def is_lfs(self) -> bool:
        """Whether the Hub would keep this file in Git LFS, where a client checks the sha256 and not the git sha1."""
        return self.size_bytes > LFS_THRESHOLD_BYTES or self.path.endswith(".safetensors")

    @property
    def etag(self) -> str:
        """What identifies the content to a client: the digest of Git LFS or the one of git."""
        return self.sha256 if self.is_lfs else self.git_sha1


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one moment, and the forty hexadecimal digits that name it."""

    sha: str
    files: Mapping[str, StoredFile]


@dataclass(frozen=True)
class Settings:
    """What holds for a repository whatever the commit.

    gated: files are served only to a client that sends the accepted token.
    built_from: names the inputs that `main` was made from; a builder with the same inputs has nothing to do.
    notice: what a person has to know before taking the content for what the name says; empty where there is nothing.
    """

    gated: bool = False
    built_from: str = ""
    notice: str = ""


@dataclass(frozen=True)
class Repository:
    """A repository's kind, its name `organisation/name`, and the folder that holds its commits."""

    kind: RepositoryKind
    name: str
    folder: Path

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch name or a full commit hash stands for. Raises UnknownRevisionError."""
        commit_sha = revision
        if revision == "main":
            commit_sha = (self.folder / "refs" / "main").read_text().strip()
        commit_file = self.folder / "commits" / f"{commit_sha}.json"
        if not re.fullmatch(r"[0-9a-f]{40}", commit_sha) or not commit_file.is_file():
            raise UnknownRevisionError(f"{self.kind}/{self.name} has no branch or commit {revision!r}")
        entries = (StoredFile(**entry) for entry in json.loads(commit_file.read_text()))
        return Commit(commit_sha, {entry.path: entry for entry in entries})

    @property
    def settings(self) -> Settings:
        """What was said about the repository when it was last published."""
        return Settings(**json.loads((self.folder / "settings.json").read_text()))


class Store:
    """All repositories under one folder. Safe for many readers beside one writer."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: RepositoryKind, name: str) -> Repository:
        """The repository of this kind and name. Raises UnknownRepositoryError."""
        repository = self._repository(kind, name)
        if not (repository.folder / "refs" / "main").is_file():
            raise UnknownRepositoryError(f"{kind}/{name} is not in {self.root}")
        return repository

    def list_repositories(self) -> list[Repository]:
        """Every published repository, models first, each kind in the order of names."""
        found = []
        for kind in KINDS:
            for ref in sorted((self.root / kind).glob("*/*/refs/main")):
                organisation, name = ref.parts[-4:-2]
                found.append(self._repository(kind, f"{organisation}/{name}"))
        return found

    def blob_path(self, file: StoredFile) -> Path:
        """Where a file's content lies."""
        return self.root / "blobs" / file.sha256

    def publish(self, kind: RepositoryKind, name: str, folder: Path, settings: Settings = Settings()) -> Commit:
        """Make every file under `folder` a commit and move `main` to it; the same content gives the same commit.

        The files are moved into the store, not copied, where `folder` lies on the same filesystem.
        """
        repository = self._repository(kind, name)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        if not paths:
            raise ValueError(f"nothing to publish as {kind}/{name}: {folder} holds no file")
        files = [self._take_in(path, path.relative_to(folder).as_posix()) for path in paths]
        listing = "".join(f"{file.git_sha1} {file.path}\n" for file in files)
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), {file.path: file for file in files})
        _write(repository.folder / "commits" / f"{commit.sha}.json", json.dumps([asdict(file) for file in files]))
        _write(repository.folder / "settings.json", json.dumps(asdict(settings)))
        _write(repository.folder / "refs" / "main", commit.sha)
        return commit

    def _repository(self, kind: RepositoryKind, name: str) -> Repository:
        # Names come from URLs: a part like ".." must never become a path.
        parts = name.split("/")
        if len(parts) != 2 or not all(_NAME_PART.fullmatch(part) for part in parts):
            raise UnknownRepositoryError(f"{name!r} is not a repository name: expected organisation/name")
        return Repository(kind, name, self.root / kind / parts[0] / parts[1])

    def _take_in(self, path: Path, path_in_repository: str) -> StoredFile:
        file = describe_file(path, path_in_repository)
        blob = self.blob_path(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if blob.exists():
            path.unlink()
        else:
            path.replace(blob)
        return file


def describe_file(path: Path, path_in_repository: str) -> StoredFile:
    """Read a file once, in pieces, for its length and digests. The git sha1 is that of `git hash-object`."""
    size_bytes = path.stat().st_size
    git_sha1 = hashlib.sha1(f"blob {size_bytes}\0".encode())
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(READ_CHUNK_BYTES):
            git_sha1.update(chunk)
            sha256.update(chunk)
    return StoredFile(path_in_repository, size_bytes, git_sha1.hexdigest(), sha256.hexdigest())


def _write(path: Path, text: str) -> None:
    """Write by rename, so that a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".writing-", delete=False) as stream:
        stream.write(text)
    Path(stream.name).replace(path)
