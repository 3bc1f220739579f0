"""Steps run side by side in their order; a failure stops the rest; durations are told the next time."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.cluster import commands, steps
from dev.cluster.failure import ClusterError
from dev.cluster.steps import Durations, Run, Step


@pytest.fixture(autouse=True)
def _not_stopping() -> None:
    commands.stopping.clear()


def execute(*of: Step, durations: Path) -> list[str]:
    shown: list[str] = []
    Run(of, Durations(durations), show=shown.append).execute()
    return shown


def noting(done: list[str], name: str) -> Callable[[], str]:
    def run() -> str:
        done.append(name)
        return "done"

    return run


def test_a_step_waits_for_those_that_it_comes_after(tmp_path: Path) -> None:
    done: list[str] = []
    execute(
        Step("third", noting(done, "third"), after=("second",)),
        Step("second", noting(done, "second"), after=("first",)),
        Step("first", noting(done, "first")),
        durations=tmp_path / "durations.json",
    )

    assert done == ["first", "second", "third"]


def test_steps_without_an_order_run_side_by_side(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=5)

    def meet() -> str:
        meeting.wait()
        return "met"

    shown = execute(Step("one", meet), Step("other", meet), durations=tmp_path / "durations.json")

    assert [line.split("]")[0] for line in shown] == ["[ 1/2", "[ 2/2"]


def test_what_comes_after_a_failed_step_is_not_done(tmp_path: Path) -> None:
    done: list[str] = []

    def fail() -> str:
        raise ClusterError("etcd", "ended", "look")

    with pytest.raises(ClusterError, match="etcd: ended"):
        execute(
            Step("etcd", fail), Step("api", noting(done, "api"), after=("etcd",)), durations=tmp_path / "durations.json"
        )

    assert done == []
    assert commands.stopping.is_set()


def test_an_unknown_predecessor_is_a_mistake_found_before_anything_runs(tmp_path: Path) -> None:
    done: list[str] = []

    with pytest.raises(ValueError, match="waits for unknown steps"):
        execute(Step("api", noting(done, "api"), after=("etc",)), durations=tmp_path / "durations.json")

    assert done == []


def test_the_next_run_tells_how_long_a_step_took(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    Durations(path).record("program kubernetes", 471.6)

    assert Durations(path).last("program kubernetes") == " (last time 472 s)"
    assert Durations(path).last("network") == ""


def test_a_step_that_found_its_work_done_does_not_change_the_memory_of_the_real_one(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    Durations(path).record("program kubernetes", 471.6)
    Durations(path).record("program kubernetes", 0.01)

    assert Durations(path).last("program kubernetes") == " (last time 472 s)"


def test_a_damaged_memory_of_durations_is_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    path.write_text('{"network": ')

    assert Durations(path).last("network") == ""


def test_a_long_step_is_shown_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "HEARTBEAT_SECONDS", 0.05)
    seen = threading.Event()
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        if "running for" in line:
            seen.set()

    def run() -> str:
        assert seen.wait(5)
        return "built"

    Run([Step("program kubernetes", run)], Durations(tmp_path / "d.json"), show=show).execute()

    assert shown[0].split() == ["program", "kubernetes", "running", "for", "0", "s"]
