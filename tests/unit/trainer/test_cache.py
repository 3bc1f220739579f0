"""Directories that are complete or not there."""

import logging
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from finetune_trainer import cache


def build(entry: Path, **files: str) -> None:
    partial = cache.partial_directory(entry)
    for name, text in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(text)


def test_a_directory_is_ready_only_when_it_was_published(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    assert not cache.is_ready(entry)
    build(entry, weights="abc")
    assert not cache.is_ready(entry)
    cache.publish(entry)
    assert cache.is_ready(entry)
    assert (entry / "weights").read_text() == "abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry"]


@pytest.mark.parametrize("damage", ["cut", "removed", "mark cut"])
def test_a_directory_whose_files_changed_is_not_ready_and_is_built_anew(damage: str, tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    build(entry, weights="abc")
    cache.publish(entry)
    match damage:
        case "cut":
            (entry / "weights").write_text("ab")
        case "removed":
            (entry / "weights").unlink()
        case _:
            (entry / cache.READY_FILE).write_text("{")
    assert not cache.is_ready(entry)
    build(entry, weights="abcd")
    cache.publish(entry)
    assert cache.is_ready(entry)
    assert (entry / "weights").read_text() == "abcd"


def hold_lock(entry: Path, held: Event) -> None:
    with cache.locked(entry):
        held.set()
        time.sleep(60)


def test_a_second_process_waits_says_so_and_goes_on_when_the_first_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=hold_lock, args=(tmp_path / "entry", held))
    holder.start()
    assert held.wait(10)
    assert holder.pid is not None
    context.Process(target=kill_later, args=(holder.pid,)).start()
    started = time.monotonic()
    with cache.locked(tmp_path / "entry"):
        assert 0.3 < time.monotonic() - started < 10
    holder.join(5)
    assert "waiting for another job that prepares entry" in caplog.text


def kill_later(process: int) -> None:
    time.sleep(0.5)
    os.kill(process, signal.SIGKILL)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "jobs" / "prepared.json"
    cache.write_atomically(path, "one")
    cache.write_atomically(path, "two")
    assert path.read_text() == "two"
    (tmp_path / "jobs" / ".prepared.json.partial").mkdir()
    with pytest.raises(OSError, match="directory"):
        cache.write_atomically(path, "three")
    assert path.read_text() == "two"
