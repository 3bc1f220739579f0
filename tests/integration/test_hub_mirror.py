"""The mirror of the Hub, asked by the real huggingface_hub client."""

import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from dev.hub.server import HubServer, LineCut, serving
from dev.hub.store import Settings, Store

MODEL, GATED_MODEL, DATASET = "someone/model", "someone/gated-model", "someone/rows"
TOKEN = "hf_of_somebody_with_access"

# NB: the client writes what it has got in pieces of 10 MiB (DOWNLOAD_CHUNK_SIZE), and resumes after the last whole one.
WEIGHTS = random.Random(7).randbytes(24 << 20)
CUT_AT = 15 << 20
RESUMED_AT = 10 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    for kind, name, files in (
        ("models", MODEL, {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "empty.txt": b""}),
        ("models", GATED_MODEL, {"config.json": b"{}"}),
        ("datasets", DATASET, {"README.md": b"rows", "data/train.json": b"[]", "data/test.json": b"[1]"}),
    ):
        folder = tmp_path_factory.mktemp("repository")
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        store.publish(kind, name, folder, Settings(gated=name == GATED_MODEL))  # type: ignore[arg-type]
    return store


@pytest.fixture
def hub(store: Store, caplog: pytest.LogCaptureFixture) -> Iterator[HubServer]:
    caplog.set_level(logging.INFO, logger="dev.hub.server")
    with serving(HubServer(store, "127.0.0.1", 0, token=TOKEN)) as server:
        yield server


def requests_seen(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The verb and the last part of the path of each request to a repository, in order."""
    lines = [record.getMessage().split() for record in caplog.records if record.name == "dev.hub.server"]
    return [
        f"{line[0]} {line[1].partition('?')[0].rpartition('/')[2]}"
        for line in lines
        if line[0] in ("GET", "HEAD") and "someone" in line[1]
    ]


def test_a_snapshot_has_every_file_byte_for_byte(hub: HubServer, tmp_path: Path) -> None:
    folder = Path(snapshot_download(MODEL, endpoint=hub.endpoint, cache_dir=tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "empty.txt", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == b'{"a": 1}'


def test_a_dataset_is_downloaded_with_its_folders_and_by_patterns(hub: HubServer, tmp_path: Path) -> None:
    folder = Path(
        snapshot_download(
            DATASET, repo_type="dataset", endpoint=hub.endpoint, cache_dir=tmp_path, allow_patterns="data/t*"
        )
    )
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*"))]
    assert found == ["data/test.json", "data/train.json"]


def test_a_second_download_asks_only_whether_the_file_has_changed(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        hf_hub_download(MODEL, "config.json", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert requests_seen(caplog) == ["HEAD config.json", "GET config.json", "HEAD config.json"]


def test_a_branch_is_told_as_the_commit_that_a_download_can_be_pinned_to(
    hub: HubServer, store: Store, tmp_path: Path
) -> None:
    api = HfApi(endpoint=hub.endpoint)
    commit = api.model_info(MODEL, revision="main").sha
    assert commit == store.find("models", MODEL).resolve("main").sha
    pinned = hf_hub_download(MODEL, "config.json", revision=commit, endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(pinned).parent.name == commit
    assert [branch.target_commit for branch in api.list_repo_refs(MODEL).branches] == [commit]


def test_a_pinned_revision_stays_what_it_was_when_main_moves(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for text in ("first", "second"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "rows.json").write_text(text)
        store.publish("datasets", DATASET, tmp_path / "folder")
        if text == "first":
            pinned = store.find("datasets", DATASET).resolve("main").sha
    with serving(HubServer(store, "127.0.0.1", 0)) as hub:
        texts = [
            Path(
                hf_hub_download(
                    DATASET,
                    "rows.json",
                    repo_type="dataset",
                    revision=revision,
                    endpoint=hub.endpoint,
                    cache_dir=tmp_path / "cache",
                )
            ).read_text()
            for revision in (pinned, "main")
        ]
    assert texts == ["first", "second"]


def test_files_are_listed_with_sizes_and_the_digests_of_git_and_lfs(hub: HubServer, store: Store) -> None:
    files = store.find("models", MODEL).resolve("main").files
    entries = HfApi(endpoint=hub.endpoint).list_repo_tree(MODEL, recursive=True)
    listed = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    assert {path: (entry.size, entry.blob_id) for path, entry in listed.items()} == {
        path: (file.size_bytes, file.git_sha1) for path, file in files.items()
    }
    digests = {path: entry.lfs and entry.lfs.sha256 for path, entry in listed.items()}
    assert digests == {"config.json": None, "empty.txt": None, "model.safetensors": files["model.safetensors"].sha256}


def test_a_folder_is_listed_alone(hub: HubServer) -> None:
    api = HfApi(endpoint=hub.endpoint)
    listed = [entry.path for entry in api.list_repo_tree(DATASET, "data", repo_type="dataset")]
    assert listed == ["data/test.json", "data/train.json"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(DATASET, "nowhere", repo_type="dataset"))


def test_what_is_not_there_is_named_by_the_clients_own_exceptions(hub: HubServer, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.endpoint)
    with pytest.raises(RepositoryNotFoundError, match="someone/else"):
        api.model_info("someone/else")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info(MODEL)
    with pytest.raises(RevisionNotFoundError, match="develop"):
        api.model_info(MODEL, revision="develop")
    with pytest.raises(RemoteEntryNotFoundError, match=r"nothing\.bin"):
        hf_hub_download(MODEL, "nothing.bin", endpoint=hub.endpoint, cache_dir=tmp_path)


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_of_somebody_else", 403)])
def test_a_gated_repository_is_closed_to_everybody_without_the_token(
    hub: HubServer, tmp_path: Path, token: str | bool, status: int
) -> None:
    with pytest.raises(GatedRepoError) as refusal:
        snapshot_download(GATED_MODEL, endpoint=hub.endpoint, cache_dir=tmp_path, token=token)
    assert refusal.value.response.status_code == status


def test_a_gated_repository_opens_with_the_token_which_is_never_logged(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = snapshot_download(GATED_MODEL, endpoint=hub.endpoint, cache_dir=tmp_path, token=TOKEN)
    assert (Path(folder) / "config.json").read_text() == "{}"
    assert "GET config.json" in requests_seen(caplog)
    assert TOKEN not in caplog.text


def test_a_server_without_a_token_opens_a_gated_repository_to_nobody(store: Store, tmp_path: Path) -> None:
    with serving(HubServer(store, "127.0.0.1", 0)) as hub, pytest.raises(GatedRepoError):
        snapshot_download(GATED_MODEL, endpoint=hub.endpoint, cache_dir=tmp_path, token="hf_anything")


def test_a_download_that_is_cut_off_resumes_where_it_was_and_ends_whole(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dev.hub.server")
    with serving(HubServer(store, "127.0.0.1", 0, line_cut=LineCut(CUT_AT, times=1))) as hub:
        path = hf_hub_download(MODEL, "model.safetensors", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert f"cut the line at byte {CUT_AT} of model.safetensors" in caplog.text
    assert caplog.text.count("/model.safetensors 206") == 1


def test_a_hub_that_goes_away_leaves_nothing_half_made_and_a_later_run_gets_the_whole_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # the client waits 1 s, five times
    line_cut = LineCut(CUT_AT, times=1000)
    with serving(HubServer(store, "127.0.0.1", 0, line_cut=line_cut)) as hub, pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download(MODEL, "model.safetensors", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size >= RESUMED_AT] == []

    with serving(HubServer(store, "127.0.0.1", 0)) as hub:
        path = hf_hub_download(MODEL, "model.safetensors", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("bytes=3-", 206, "bytes 3-7/8", b'": 1}'[-5:]),
        ("bytes=0-1", 206, "bytes 0-1/8", b'{"'),
        ("bytes=-2", 206, "bytes 6-7/8", b"1}"),
        ("bytes=6-999", 206, "bytes 6-7/8", b"1}"),
        ("bytes=0-7", 200, None, b'{"a": 1}'),
        ("lines=1-2", 200, None, b'{"a": 1}'),
        ("bytes=8-", 416, None, None),
    ],
)
def test_a_range_is_answered_as_rfc_9110_says(
    hub: HubServer, asked: str, status: int, content_range: str | None, body: bytes | None
) -> None:
    answer = httpx2.get(f"{hub.endpoint}/{MODEL}/resolve/main/config.json", headers={"Range": asked})
    assert (answer.status_code, answer.headers.get("Content-Range")) == (status, content_range)
    assert body is None or answer.content == body


def test_the_process_serves_within_two_seconds_and_says_where(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub" / "repositories")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rows.json").write_text("[]")
    store.publish("datasets", DATASET, tmp_path / "folder", Settings(notice="made up"))
    command = [sys.executable, "-m", "dev.hub", "serve", "--port", "0"]
    environment = os.environ | {"FINETUNE_CACHE": str(tmp_path)}
    started = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as mirror:
        try:
            assert mirror.stdout is not None
            endpoint = mirror.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
            assert mirror.stdout.readline() == f"  datasets/{DATASET}  made up\n"
            assert httpx2.get(f"{endpoint}/").json() == [f"datasets/{DATASET}"]
            assert time.monotonic() - started < 2
        finally:
            mirror.terminate()


def test_a_process_with_nothing_to_serve_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dev.hub", "serve", "--port", "0"]
    environment = os.environ | {"FINETUNE_CACHE": str(tmp_path)}
    mirror = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert mirror.returncode == 1
    assert "run `python -m dev.hub build` first" in mirror.stderr
