"""Repositories and folders as the JSON that the Hub describes them with."""

from __future__ import annotations

from dev.hub.store import Commit, Repository, StoredFile


def describe_repository(repository: Repository, commit: Commit) -> dict[str, object]:
    """The Hub's description of a repository at a commit, as far as the mirror has something true to say."""
    id_field = {"models": "modelId", "datasets": "datasetId"}[repository.kind]
    return {
        "id": repository.name,
        id_field: repository.name,
        "sha": commit.sha,
        "private": False,
        "disabled": False,
        "gated": "manual" if repository.settings.gated else False,
        "tags": [],
        "siblings": [
            {"rfilename": file.path, "size": file.size_bytes, "blobId": file.git_sha1} | _lfs_entry(file)
            for file in commit.files.values()
        ],
    }


def list_folder(commit: Commit, folder: str) -> list[dict[str, object]]:
    """The entries of the Hub's tree listing: every file under a folder at any depth, as with `recursive=true`.

    Folders themselves are not listed. Empty if there is no such folder; the empty string is the whole repository.
    """
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    files = [file for file in commit.files.values() if file.path.startswith(prefix)]
    return [
        {"type": "file", "path": file.path, "size": file.size_bytes, "oid": file.git_sha1} | _lfs_entry(file)
        for file in files
    ]


def _lfs_entry(file: StoredFile) -> dict[str, object]:
    if not file.is_lfs:
        return {}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size_bytes}\n"
    # The same digest under both names: `tree` calls it oid, the siblings of a repository sha256.
    digest = {"oid": file.sha256, "sha256": file.sha256}
    return {"lfs": {**digest, "size": file.size_bytes, "pointerSize": len(pointer)}}
