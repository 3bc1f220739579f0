"""What is removed of a cache that several jobs and namespaces share, and what never is."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from finetune_trainer import cache
from finetune_trainer.upkeep.command import main
from finetune_trainer.upkeep.prune import Entry, Fate, Jobs, prune

COMMIT = "0" * 40
MODEL = f"models/team--model@{COMMIT}"
OTHER_MODEL = f"models/team--other@{COMMIT}"
PACKED = f"datasets/{'a' * 32}"
SOURCE = f"datasets/sources/team--calls@{COMMIT}.0123456789ab"
LISTED_AT = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


def make_entry(shared: Path, path: str, ready: bool = True) -> Path:
    directory = shared / path
    directory.mkdir(parents=True)
    (directory / "weights").write_bytes(b"x" * 100)
    if ready:
        (directory / cache.READY_FILE).write_text("{}")
    return directory


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    for path in (MODEL, OTHER_MODEL, PACKED, SOURCE):
        make_entry(tmp_path, path)
    return tmp_path


def jobs(**changes: frozenset[str]) -> Jobs:
    parts = {"uids": frozenset[str](), "paths": frozenset[str](), "repositories": frozenset[str]()} | changes
    return Jobs("team-a", LISTED_AT, parts["uids"], parts["paths"], parts["repositories"])


def prepared(shared: Path, job: str, written: datetime) -> None:
    directory = shared / "jobs" / job
    directory.mkdir(parents=True)
    path = directory / "prepared.json"
    path.write_text(json.dumps({"modelPath": MODEL, "dataPath": PACKED, "anythingElse": 1}))
    os.utime(path, (written.timestamp(), written.timestamp()))


def fates(shared: Path, of: Jobs, remove: bool = False) -> dict[str, Fate]:
    return {entry.path: entry.fate for entry in prune(shared, of, remove=remove)}


def test_without_jobs_everything_in_the_cache_is_unused_and_listing_removes_nothing(shared: Path) -> None:
    assert fates(shared, jobs()) == dict.fromkeys([MODEL, OTHER_MODEL, SOURCE, PACKED], Fate.UNUSED)
    assert (shared / MODEL / "weights").exists()


def test_what_a_job_names_by_path_or_by_repository_is_kept(shared: Path) -> None:
    named = jobs(paths=frozenset({MODEL, PACKED}), repositories=frozenset({"team/calls"}))
    assert fates(shared, named, remove=True) == {
        MODEL: Fate.KEPT,
        OTHER_MODEL: Fate.REMOVED,
        SOURCE: Fate.KEPT,
        PACKED: Fate.KEPT,
    }
    assert not (shared / OTHER_MODEL).exists()
    assert (shared / MODEL / "weights").exists()


def test_a_file_below_an_entry_that_a_job_names_keeps_the_entry(shared: Path) -> None:
    assert fates(shared, jobs(paths=frozenset({f"{MODEL}/weights"})))[MODEL] is Fate.KEPT


@pytest.mark.parametrize(
    ("job", "written", "fate"),
    [
        ("team-a/calls/gone", datetime(2026, 11, 1, tzinfo=UTC), Fate.UNUSED),
        ("team-a/calls/lives", datetime(2026, 11, 1, tzinfo=UTC), Fate.KEPT),
        ("team-a/new/unlisted", datetime(2026, 11, 27, 12, 5, tzinfo=UTC), Fate.KEPT),
        ("team-b/calls/whoever", datetime(2026, 11, 1, tzinfo=UTC), Fate.KEPT),
    ],
    ids=["deleted job", "living job", "job made since the list", "job of another namespace"],
)
def test_what_a_job_was_prepared_from_is_kept_unless_the_job_is_known_to_be_gone(
    shared: Path, job: str, written: datetime, fate: Fate
) -> None:
    prepared(shared, job, written)
    assert fates(shared, jobs(uids=frozenset({"lives"})))[MODEL] is fate


def test_what_a_person_laid_beside_the_cache_is_not_even_listed(shared: Path) -> None:
    own = [make_entry(shared, path, ready=False) for path in ("models/my-model", "datasets/rows", "models/a@b")]
    file = shared / "datasets" / "rows.jsonl"
    file.write_text("{}")
    assert set(fates(shared, jobs(), remove=True)) == {MODEL, OTHER_MODEL, SOURCE, PACKED}
    assert all(path.exists() for path in [*own, file])


def test_jobs_and_their_adapters_are_never_touched(shared: Path) -> None:
    adapter = make_entry(shared, f"jobs/team-a/calls/gone/{'a' * 32}")
    fates(shared, jobs(), remove=True)
    assert adapter.exists()


def test_what_is_being_made_is_busy(shared: Path) -> None:
    make_entry(shared, f"models/.team--third@{COMMIT}.partial", ready=False)
    with cache.locked(shared / f"models/team--third@{COMMIT}"):
        assert fates(shared, jobs(), remove=True)[f"models/.team--third@{COMMIT}.partial"] is Fate.BUSY
    assert fates(shared, jobs(), remove=True)[f"models/.team--third@{COMMIT}.partial"] is Fate.REMOVED


def test_the_rest_of_a_removal_that_was_killed_is_removed_the_next_time(shared: Path) -> None:
    rest = make_entry(shared, f"models/.team--model@{COMMIT}.discarded")
    kept = jobs(paths=frozenset({MODEL}))
    assert fates(shared, kept, remove=True)[str(rest.relative_to(shared))] is Fate.REMOVED
    assert (shared / MODEL).exists()
    assert not rest.exists()


def test_a_link_out_of_the_cache_is_not_followed(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = make_entry(tmp_path_factory.mktemp("elsewhere"), "precious")
    (shared / f"models/team--link@{COMMIT}").symlink_to(elsewhere)
    fates(shared, jobs(), remove=True)
    assert (elsewhere / "weights").exists()


def test_a_second_time_finds_nothing_left(shared: Path) -> None:
    fates(shared, jobs(), remove=True)
    assert fates(shared, jobs(), remove=True) == {}


def test_the_command_prints_a_document_a_line(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", "--shared", str(shared), "--namespace", "team-a", "--listed-at", LISTED_AT.isoformat()]
    assert main([*words, "--keep", MODEL, "--living", "u", "--keep-repository", "team/other", "--remove"]) == 0
    entries = [Entry.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry.path: entry.fate for entry in entries} == {
        MODEL: Fate.KEPT,
        OTHER_MODEL: Fate.KEPT,
        SOURCE: Fate.REMOVED,
        PACKED: Fate.REMOVED,
    }
    assert all(entry.bytes == 102 for entry in entries)
