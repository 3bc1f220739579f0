from pathlib import Path

import pytest

from dev.hub.store import Settings, Store, UnknownRepositoryError, UnknownRevisionError


def a_folder(parent: Path, files: dict[str, str]) -> Path:
    folder = parent / "folder"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_a_file_has_the_digests_that_git_and_sha256sum_give(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    commit = store.publish("models", "someone/model", a_folder(tmp_path, {"greeting.txt": "hello\n"}))
    # `printf 'hello\n' | git hash-object --stdin` and `printf 'hello\n' | sha256sum`
    assert commit.files["greeting.txt"].git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert commit.files["greeting.txt"].sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


def test_the_same_content_gives_the_same_commit_and_other_content_another(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.publish("models", "someone/model", a_folder(tmp_path, {"a": "1", "deep/b": "2"}))
    again = store.publish("models", "someone/model", a_folder(tmp_path, {"a": "1", "deep/b": "2"}))
    changed = store.publish("models", "someone/model", a_folder(tmp_path, {"a": "1", "deep/b": "3"}))
    assert first.sha == again.sha != changed.sha


def test_main_moves_and_the_earlier_commit_can_still_be_had(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.publish("datasets", "someone/rows", a_folder(tmp_path, {"rows.json": "[]"}))
    second = store.publish("datasets", "someone/rows", a_folder(tmp_path, {"rows.json": "[1]"}))
    repository = store.find("datasets", "someone/rows")
    assert repository.resolve("main") == second
    assert store.blob_path(repository.resolve(first.sha).files["rows.json"]).read_text() == "[]"


def test_models_and_datasets_of_one_name_are_two_repositories(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.publish("models", "someone/thing", a_folder(tmp_path, {"a": "model"}))
    with pytest.raises(UnknownRepositoryError):
        store.find("datasets", "someone/thing")


@pytest.mark.parametrize("revision", ["develop", "0" * 40, "../refs/main", "", "main\n"])
def test_a_revision_that_was_never_published_is_unknown(tmp_path: Path, revision: str) -> None:
    store = Store(tmp_path / "store")
    store.publish("models", "someone/model", a_folder(tmp_path, {"a": "1"}))
    with pytest.raises(UnknownRevisionError, match="someone/model"):
        store.find("models", "someone/model").resolve(revision)


@pytest.mark.parametrize("name", ["someone", "../..", "a/..", "a/b/c", "/etc", "a/.hidden", ""])
def test_a_name_that_could_lead_out_of_the_store_is_unknown(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownRepositoryError):
        Store(tmp_path).find("models", name)


def test_an_empty_folder_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="someone/model"):
        Store(tmp_path / "store").publish("models", "someone/model", tmp_path / "empty")


def test_settings_are_those_of_the_last_publication(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.publish("models", "someone/model", a_folder(tmp_path, {"a": "1"}), Settings(built_from="x"))
    store.publish("models", "someone/model", a_folder(tmp_path, {"a": "1"}), Settings(gated=True, built_from="y"))
    assert store.find("models", "someone/model").settings == Settings(gated=True, built_from="y")


def test_large_files_and_weights_are_known_by_their_sha256(tmp_path: Path) -> None:
    files = {"large.json": "x" * (1024 * 1024 + 1), "small.safetensors": "x", "small.json": "x"}
    commit = Store(tmp_path / "store").publish("models", "someone/model", a_folder(tmp_path, files))
    assert {path: file.etag == file.sha256 for path, file in commit.files.items()} == {
        "large.json": True,
        "small.safetensors": True,
        "small.json": False,
    }
