"""The watch that no two gangs of a job run at once is one that can cry out."""

from typing import Any

from tests.e2e.faults.gangs import Gangs, JobName

JOB = JobName("team", "tuned")


def pod(uid: str, attempt: int, phase: str = "Running", name: str = "tuned") -> dict[str, Any]:
    labels = {"finetune.dev/job": name, "finetune.dev/attempt": str(attempt)}
    return {
        "metadata": {"namespace": "team", "name": f"{name}-{uid}", "uid": uid, "labels": labels},
        "status": {"phase": phase},
    }


def seen(*events: tuple[str, dict[str, Any]]) -> Gangs:
    gangs = Gangs()
    for event_type, seen_pod in events:
        gangs.see(event_type, seen_pod)
    return gangs


def test_a_pod_that_runs_beside_one_of_another_attempt_is_told() -> None:
    gangs = seen(("ADDED", pod("a", 1)), ("ADDED", pod("b", 2, "Pending")), ("MODIFIED", pod("b", 2)))
    assert gangs.overlaps(JOB) == ["pod tuned-b ran beside pods of attempt 1"]


def test_pods_of_one_attempt_may_run_at_once() -> None:
    gangs = seen(("ADDED", pod("a", 1)), ("ADDED", pod("b", 1)))
    assert gangs.overlaps(JOB) == []
    assert gangs.attempts(JOB) == {1}


def test_an_attempt_may_run_when_the_pods_of_the_one_before_have_ended_or_are_gone() -> None:
    gangs = seen(
        ("ADDED", pod("a", 1)),
        ("ADDED", pod("b", 1)),
        ("MODIFIED", pod("a", 1, "Failed")),
        ("DELETED", pod("b", 1)),
        ("ADDED", pod("c", 2)),
    )
    assert gangs.overlaps(JOB) == []
    assert gangs.attempts(JOB) == {1, 2}


def test_pods_of_another_job_do_not_count() -> None:
    gangs = seen(("ADDED", pod("a", 1)), ("ADDED", pod("b", 2, name="other")))
    assert gangs.overlaps(JOB) == []


def test_what_went_while_nobody_could_watch_does_not_count_as_running() -> None:
    gangs = seen(("ADDED", pod("a", 1)))
    gangs.begin()
    gangs.see("ADDED", pod("b", 2))
    assert gangs.overlaps(JOB) == []


def test_what_runs_on_over_a_cut_of_the_watch_is_told_beside_the_next() -> None:
    gangs = seen(("ADDED", pod("a", 1)))
    gangs.begin()
    gangs.see("ADDED", pod("a", 1))
    gangs.see("ADDED", pod("b", 2))
    assert gangs.overlaps(JOB) == ["pod tuned-b ran beside pods of attempt 1"]
