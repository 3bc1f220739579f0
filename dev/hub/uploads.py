"""The part of the Hub's HTTP interface that `huggingface_hub` uses to upload, for tests of an export.

    POST /api/repos/create                                  create_repo
    POST /api/validate-yaml                                 the front matter of a README.md
    POST /api/models/<repository>/preupload/main            which files go into Git LFS
    POST /<repository>.git/info/lfs/objects/batch           where their content is to be put
    PUT  /uploads/<sha256>                                  their content
    POST /api/models/<repository>/commit/main               one line of JSON for each file

https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/_commit_api.py
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from dev.hub.store import LFS_THRESHOLD_BYTES, Commit, Settings, Store, UnknownRepositoryError


class BadUploadError(Exception):
    """An upload that the Hub would not take."""


def create_repository(store: Store, request: dict[str, Any]) -> str:
    """Make an empty model repository and return its name; it has one file, as a repository of the Hub has."""
    organisation = request.get("organization")
    if not organisation:
        raise BadUploadError("this mirror knows no users: name the repository organisation/name")
    name = f"{organisation}/{request['name']}"
    with _folder(store) as folder:
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        is_private = bool(request.get("private")) or request.get("visibility") == "private"
        store.publish("models", name, folder, Settings(gated=is_private))
    return name


def exists(store: Store, name: str) -> bool:
    """Whether a model repository is there."""
    try:
        store.find("models", name)
    except UnknownRepositoryError:
        return False
    return True


def choose_modes(files: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Say of each file whether its content comes with the commit or through Git LFS."""
    return {
        "files": [
            {"path": file["path"], "uploadMode": "lfs" if _is_large(file) else "regular", "shouldIgnore": False}
            for file in files
        ]
    }


def choose_transfers(store: Store, endpoint: str, objects: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Say where the content of each object is to be put; nowhere, where it is in the store already."""
    answers = []
    for wanted in objects:
        answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if not (store.root / "blobs" / wanted["oid"]).exists():
            answer["actions"] = {"upload": {"href": f"{endpoint}/uploads/{wanted['oid']}", "header": {}}}
        answers.append(answer)
    return {"transfer": "basic", "objects": answers}


def commit(store: Store, name: str, lines: Iterable[bytes]) -> Commit:
    """Add the files of a commit's body to those that the repository has, and move `main` to the result.

    Raises:
        BadUploadError: a file was not uploaded before, has a strange path, or the line is of an unknown kind.
    """
    repository = store.find("models", name)
    with _folder(store) as folder:
        for file in repository.resolve("main").files.values():
            _put(folder, file.path, store.blob_path(file))
        for line in lines:
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                target = _place(folder, value["path"])
                target.write_bytes(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                blob = store.root / "blobs" / value["oid"]
                if not blob.exists():
                    raise BadUploadError(f"{value['path']}: its content {value['oid']} was not uploaded")
                _put(folder, value["path"], blob)
            elif entry["key"] != "header":
                raise BadUploadError(f"this mirror does not know how to commit a {entry['key']}")
        return store.publish("models", name, folder, repository.settings)


def _is_large(file: dict[str, Any]) -> bool:
    return bool(file["size"] > LFS_THRESHOLD_BYTES or file["path"].endswith(".safetensors"))


def _put(folder: Path, path: str, content: Path) -> None:
    shutil.copyfile(content, _place(folder, path))


def _place(folder: Path, path: str) -> Path:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise BadUploadError(f"{path!r} leaves the repository")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


@contextmanager
def _folder(store: Store) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=store.root, prefix=".upload-") as folder:
        yield Path(folder)
