from pathlib import Path

import pytest

from dev.hub.catalogue import Entry, build
from dev.hub.store import Store


def an_entry(source: Path, name: str = "someone/rows") -> Entry:
    def write(folder: Path) -> None:
        (folder / "rows.json").write_text(source.read_text())

    return Entry("datasets", name, write, inputs=(source,))


def build_and_listen(store: Store, *entries: Entry) -> list[str]:
    lines: list[str] = []
    build(store, entries, say=lines.append)
    return lines


def test_what_has_not_changed_is_not_built_again(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "source.json"
    source.write_text("[1]")
    assert "built in" in build_and_listen(store, an_entry(source))[-1]
    assert build_and_listen(store, an_entry(source)) == ["[1/1] datasets/someone/rows  unchanged"]


def test_a_changed_input_is_built_and_published_again(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "source.json"
    source.write_text("[1]")
    build_and_listen(store, an_entry(source))
    source.write_text("[1, 2]")
    build_and_listen(store, an_entry(source))
    commit = store.find("datasets", "someone/rows").resolve("main")
    assert store.blob_path(commit.files["rows.json"]).read_text() == "[1, 2]"


def test_a_builder_that_fails_publishes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store, missing = Store(tmp_path / "store"), tmp_path / "source.json"
    missing.write_text("[1]")
    entry = an_entry(missing)

    def write_half(folder: Path) -> None:
        (folder / "rows.json").write_text("[1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(store, [Entry("datasets", entry.name, write_half, entry.inputs)], say=lambda _: None)
    assert store.list_repositories() == []
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_a_build_clears_away_what_a_killed_one_left(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "source.json"
    source.write_text("[1]")
    (store.root / ".building-abc").mkdir(parents=True)
    (store.root / ".building-abc" / "model.safetensors").write_text("half")
    build_and_listen(store, an_entry(source))
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "blobs", "datasets"]


def test_models_come_before_datasets_in_the_list_of_what_is_served(tmp_path: Path) -> None:
    store, source = Store(tmp_path / "store"), tmp_path / "source.json"
    source.write_text("[1]")
    a_model = Entry("models", "zoo/zebra", an_entry(source).write, (source,))
    build_and_listen(store, an_entry(source), a_model)
    assert [(each.kind, each.name) for each in store.list_repositories()] == [
        ("models", "zoo/zebra"),
        ("datasets", "someone/rows"),
    ]
