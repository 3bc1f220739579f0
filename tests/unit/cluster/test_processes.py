"""Daemons are found by what they carry in their environment, started once, and started anew when they would differ."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster import processes
from dev.cluster.failure import ClusterError
from dev.cluster.processes import Part, cluster_processes, ensure_running, find, stop, wait_until_ready


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(processes, "LOGS", tmp_path)
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    stop(process for process in cluster_processes() if process.part == name)


def sleeper(name: str, seconds: str = "1000", configuration: tuple[Path, ...] = ()) -> Part:
    return Part(name, ("/usr/bin/sleep", seconds), configuration=configuration)


def started(part: Part) -> int:
    wait_until_ready(part, lambda: find(part) is not None, timeout_seconds=5, advice="")
    process = find(part)
    assert process is not None
    return process.pid


def wait_until_gone(part: Part) -> None:
    deadline = time.monotonic() + 5
    while find(part) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_running_part_is_left_alone(name: str) -> None:
    assert ensure_running(sleeper(name)) is True
    pid = started(sleeper(name))

    assert ensure_running(sleeper(name)) is False
    assert started(sleeper(name)) == pid


def test_a_killed_part_is_seen_as_gone_and_started_again(name: str) -> None:
    ensure_running(sleeper(name))
    os.kill(started(sleeper(name)), signal.SIGKILL)

    wait_until_gone(sleeper(name))
    assert ensure_running(sleeper(name)) is True


def test_another_command_starts_the_part_anew(name: str) -> None:
    ensure_running(sleeper(name))
    pid = started(sleeper(name))

    assert ensure_running(sleeper(name, seconds="2000")) is True
    assert started(sleeper(name, seconds="2000")) != pid


def test_a_changed_configuration_file_starts_the_part_anew(name: str, tmp_path: Path) -> None:
    file = tmp_path / "part.yaml"
    file.write_text("a: 1")
    part = sleeper(name, configuration=(file,))
    ensure_running(part)
    started(part)

    file.write_text("a: 2")

    assert ensure_running(part) is True


def test_a_part_that_ends_at_once_is_reported_with_its_last_words(name: str) -> None:
    part = Part(name, ("/bin/sh", "-c", "echo port 53 is taken >&2; exit 1"))
    ensure_running(part)

    with pytest.raises(ClusterError) as failure:
        wait_until_ready(part, lambda: False, timeout_seconds=10, advice="free the port")

    report = failure.value.report()
    assert f"FAILED: {name}: ended right after its start" in report
    assert "| port 53 is taken" in report
    assert "what to do: free the port" in report


def test_a_part_that_ignores_the_request_to_end_is_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.3)
    part = Part(name, ("/bin/sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"))
    ensure_running(part)
    started(part)

    stop(process for process in cluster_processes() if process.part == name)

    assert find(part) is None
