"""Downloads into the cache, from a real server over real connections."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dev.hub.server import HubServer, LineCut, serving
from dev.hub.store import Settings, Store
from finetune_trainer import cache, hub
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from tests.chat_models import write_chat_model

MODEL, GATED, DATASET, PICKLED = "team/model", "team/gated", "team/rows", "team/pickled"
TOKEN = "hf_of_somebody_with_access"
NO_WAIT = (0.01, 0.01)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    for name in (MODEL, GATED):
        folder = tmp_path_factory.mktemp("repository")
        write_chat_model(folder)
        for unneeded in (
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "model.gguf",
            "consolidated.safetensors",
            "a.png",
        ):
            (folder / unneeded).parent.mkdir(exist_ok=True)
            (folder / unneeded).write_bytes(b"unneeded")
        store.publish("models", name, folder, Settings(gated=name == GATED))
    rows = tmp_path_factory.mktemp("repository")
    (rows / "data").mkdir()
    for name in ("a", "b"):
        (rows / f"data/{name}.jsonl").write_text(f'{{"name": "{name}"}}\n')
    store.publish("datasets", DATASET, rows)
    pickled = tmp_path_factory.mktemp("repository")
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    store.publish("models", PICKLED, pickled)
    return store


@pytest.fixture
def server(store: Store, caplog: pytest.LogCaptureFixture) -> Iterator[HubServer]:
    caplog.set_level(logging.INFO)
    with serving(HubServer(store, "127.0.0.1", 0, token=TOKEN)) as server:
        yield server


def client(server: HubServer, token: str | None = None) -> hub.Hub:
    return hub.Hub(server.endpoint, token, NO_WAIT)


def fetch(source: hub.Hub, models: Path, repository: str = MODEL) -> Path:
    return hub.fetch_model(
        source, hub.look_up(source, "model", repository, "main"), models, check=lambda directory: None
    )


def downloads(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The files that were really sent, by the server's own log."""
    requests = [record.getMessage() for record in caplog.records if record.name == "dev.hub.server"]
    return [
        request.split()[1].rpartition("/")[2]
        for request in requests
        if request.startswith("GET") and "/resolve/" in request
    ]


def test_a_model_is_downloaded_under_its_commit_without_the_files_that_it_does_not_need(
    server: HubServer, tmp_path: Path
) -> None:
    commit = hub.look_up(client(server), "model", MODEL, "main").commit
    directory = fetch(client(server), tmp_path)
    assert directory == tmp_path / f"team--model@{commit}"
    assert sorted(file.name for file in directory.iterdir()) == [
        "READY", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_second_job_downloads_nothing(server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fetch(client(server), tmp_path)
    assert len(downloads(caplog)) == 4
    caplog.clear()
    assert fetch(client(server), tmp_path) == first
    assert downloads(caplog) == []


def test_a_model_that_is_named_by_its_commit_is_found_without_asking_the_hub(server: HubServer, tmp_path: Path) -> None:
    directory = fetch(client(server), tmp_path)
    commit = directory.name.partition("@")[2]
    assert hub.cached_model(tmp_path, MODEL, commit) == directory
    assert hub.cached_model(tmp_path, MODEL, "main") is None
    assert hub.cached_model(tmp_path, MODEL, "0" * 40) is None


def test_two_jobs_at_once_download_once(server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(client(server), tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert sorted(downloads(caplog)) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_a_refused_model_is_refused_before_its_weights_are_downloaded(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(directory: Path) -> None:
        assert (directory / "config.json").is_file()
        raise TrainerError(Reason.MODEL_UNSUPPORTED, "no")

    snapshot = hub.look_up(client(server), "model", MODEL, "main")
    with pytest.raises(TrainerError, match="no"):
        hub.fetch_model(client(server), snapshot, tmp_path, refuse)
    assert "model.safetensors" not in downloads(caplog)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_a_model_without_safetensors_is_refused_before_anything_is_downloaded(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrainerError) as error:
        fetch(client(server), tmp_path, PICKLED)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED
    assert downloads(caplog) == []


def test_of_a_data_set_only_the_named_files_are_downloaded(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = hub.look_up(client(server), "dataset", DATASET, "main")
    directory = hub.fetch_files(client(server), snapshot, ["data/b.jsonl"], tmp_path / "entry")
    assert (directory / "data/b.jsonl").read_text() == '{"name": "b"}\n'
    assert downloads(caplog) == ["b.jsonl"]


def test_a_line_that_breaks_within_a_file_is_taken_up_again(store: Store, tmp_path: Path) -> None:
    with serving(HubServer(store, "127.0.0.1", 0, line_cut=LineCut(offset_bytes=5000, times=2))) as server:
        directory = fetch(client(server), tmp_path)
    assert cache.is_ready(directory)


def test_a_hub_that_stays_away_within_a_file_leaves_no_entry_and_the_next_job_goes_on(
    store: Store, server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = HubServer(store, "127.0.0.1", 0, line_cut=LineCut(offset_bytes=20_000, times=1000))
    with serving(away), pytest.raises(TrainerError) as error:
        fetch(hub.Hub(away.endpoint, None, ()), tmp_path)
    assert error.value.reason is Reason.MODEL_UNAVAILABLE
    assert MODEL in error.value.message
    commit = hub.look_up(client(server), "model", MODEL, "main").commit
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", f".team--model@{commit}.partial"]
    caplog.clear()
    assert cache.is_ready(fetch(client(server), tmp_path))
    assert "config.json" not in downloads(caplog)
    assert "model.safetensors" in downloads(caplog)


UNAVAILABLE = {
    "a repository that is not there": (
        "model",
        "team/nothing",
        "main",
        None,
        "there is no such model on http://127.0.0.1:",
    ),
    "a data set that is not there": (
        "dataset",
        "team/nothing",
        "main",
        None,
        "there is no such dataset on http://127.0.0.1:",
    ),
    "a revision that is not there": ("model", MODEL, "v9", None, "has no branch, tag or commit 'v9'"),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_what_is_not_there_is_named(case: str, server: HubServer) -> None:
    kind, repository, revision, token, message = UNAVAILABLE[case]
    with pytest.raises(TrainerError) as error:
        hub.look_up(client(server, token), kind, repository, revision)  # type: ignore[arg-type]
    expected = Reason.MODEL_UNAVAILABLE if kind == "model" else Reason.DATA_UNAVAILABLE
    assert error.value.reason is expected
    assert error.value.message.startswith(f"{repository}: ")
    assert message in error.value.message


def test_a_gated_model_without_a_token_says_where_to_accept_its_licence_and_where_the_token_goes(
    server: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError) as error:
        fetch(client(server), tmp_path, GATED)
    assert error.value.reason is Reason.MODEL_UNAVAILABLE
    assert "accept its licence at https://huggingface.co/team/gated" in error.value.message
    assert "HF_TOKEN in the Secret" in error.value.message


def test_a_gated_model_with_a_token_without_access_says_so_and_never_shows_the_token(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrainerError) as error:
        fetch(client(server, "hf_of_a_stranger"), tmp_path, GATED)
    assert "accept the licence at https://huggingface.co/team/gated with that account" in error.value.message
    assert "hf_of_a_stranger" not in error.value.message + caplog.text


def test_a_gated_model_is_downloaded_with_a_token_that_has_access(server: HubServer, tmp_path: Path) -> None:
    assert cache.is_ready(fetch(client(server, TOKEN), tmp_path, GATED))


def test_a_line_break_behind_the_token_in_a_secret_is_no_part_of_it(server: HubServer) -> None:
    source = hub.Hub.of({"HF_ENDPOINT": server.endpoint, "HF_TOKEN": f"{TOKEN}\n"})
    assert hub.look_up(source, "model", GATED, "main").repository == GATED
    assert source.token == TOKEN


@pytest.mark.parametrize("token", ["hf_one\nhf_two", "hf_one hf_two", "hf_\u00e9", "hf_\x00"])
def test_a_token_that_no_header_can_hold_is_refused_and_never_told(token: str) -> None:
    with pytest.raises(TrainerError, match="HF_TOKEN in the Secret") as error:
        hub.Hub.of({"HF_TOKEN": token})
    assert error.value.reason is Reason.INVALID_SPEC
    assert "hf_" not in error.value.message


def test_without_a_token_nothing_is_sent() -> None:
    assert hub.Hub.of({}).token is None
    assert hub.Hub.of({"HF_TOKEN": ""}).token is None


def test_a_hub_that_cannot_be_reached_is_tried_again_and_then_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainerError) as error:
        hub.look_up(hub.Hub("http://127.0.0.1:9", None, NO_WAIT), "model", MODEL, "main")
    assert error.value.reason is Reason.MODEL_UNAVAILABLE
    assert "http://127.0.0.1:9 cannot be reached" in error.value.message
    assert caplog.text.count("trying again") == 2


def test_a_server_that_is_no_hub_is_named_with_its_answer(server: HubServer) -> None:
    with pytest.raises(TrainerError, match="answers Client error '404"):
        hub.look_up(hub.Hub(f"{server.endpoint}/elsewhere", None, NO_WAIT), "model", MODEL, "main")


class _Listing:
    """What a Hub says of a repository."""

    def __init__(self, commit: str, *names: str) -> None:
        self.sha = commit
        self.siblings = [SimpleNamespace(rfilename=name, size=1) for name in names]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "name", ["../outside.jsonl", "/etc/passwd", "LICENSE/../../../evil", "data/..", "a//b.jsonl", "", "a\\..\\b.jsonl"]
)
def test_a_file_that_would_leave_the_cache_is_refused_before_anything_is_fetched(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = _Listing(COMMIT, "config.json", name)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: listing)
    with pytest.raises(TrainerError, match="lists a file that would leave the repository") as caught:
        hub.look_up(hub.Hub("http://hub.example"), "model", MODEL, "main")
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE


@pytest.mark.parametrize("commit", ["../../jobs/team-b", "main", "", COMMIT + "/.."])
def test_a_commit_that_is_none_is_refused_because_it_names_a_directory(
    commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = _Listing(commit, "config.json")
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: listing)
    with pytest.raises(TrainerError, match="calls the commit"):
        hub.look_up(hub.Hub("http://hub.example"), "model", MODEL, "main")
