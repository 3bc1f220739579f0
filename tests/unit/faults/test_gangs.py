"""The watch that no two gangs of a job run at once is one that can cry out."""

from typing import Any

import pytest

from tests.e2e.faults.gangs import Gangs, JobName
from tests.e2e.faults.history import PodName

JOB = JobName("team", "tuned")


def pod(
    uid: str,
    attempt: int,
    phase: str = "Running",
    name: str = "tuned",
    started: str | None = None,
    ended: str | None = None,
) -> dict[str, Any]:
    """A pod; the times, as `05:00:01`, are what the kubelet notes of its container."""
    labels = {"finetune.dev/job": name, "finetune.dev/attempt": str(attempt)}
    state: dict[str, Any] = {"running": {"startedAt": moment(started)}} if started else {}
    if ended:
        state = {"terminated": {"startedAt": moment(started), "finishedAt": moment(ended), "exitCode": 1}}
    return {
        "metadata": {"namespace": "team", "name": f"{name}-{uid}", "uid": uid, "labels": labels},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]},
    }


def moment(time: str | None) -> str | None:
    return time and f"2026-11-28T{time}Z"


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


# --- what nobody watched, as the API server was away ------------------------------------------------------------------


def test_what_went_while_nobody_could_watch_does_not_count_as_running() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all([])
    gangs.see("ADDED", pod("b", 2, started="05:01:00"))
    assert gangs.overlaps(JOB) == []


def test_what_runs_on_over_a_cut_of_the_watch_is_told_beside_the_next() -> None:
    gangs = seen(("ADDED", pod("a", 1)))
    gangs.see_all([pod("a", 1)])
    gangs.see("ADDED", pod("b", 2))
    assert gangs.overlaps(JOB) == ["pod tuned-b ran beside pods of attempt 1"]


def test_two_attempts_that_both_ran_and_ended_while_nobody_watched_are_told_by_the_times_of_their_containers() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all(
        [
            pod("a", 1, "Failed", started="05:00:00", ended="05:00:20"),
            pod("b", 2, "Failed", started="05:00:19", ended="05:00:25"),
        ]
    )
    assert gangs.overlaps(JOB) == ["pod tuned-b ran beside pods of attempt 1"]
    assert gangs.attempts(JOB) == {1, 2}


def test_an_attempt_that_began_before_the_end_of_one_that_is_told_later_is_found_too() -> None:
    gangs = Gangs()
    gangs.see_all([pod("b", 2, started="05:00:10")])
    gangs.see("DELETED", pod("a", 1, "Failed", started="05:00:00", ended="05:00:11"))
    assert gangs.overlaps(JOB) == ["pod tuned-b ran beside pods of attempt 1"]


def test_an_attempt_that_began_and_went_beside_one_that_ran_all_the_time_is_told() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all(
        [pod("a", 1, started="05:00:00"), pod("b", 2, "Failed", started="05:00:10", ended="05:00:12")],
    )
    assert gangs.overlaps(JOB) == ["pod tuned-b ran beside pods of attempt 1"]


def test_an_attempt_that_began_while_the_one_before_went_unseen_is_told_because_nobody_can_tell() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all([pod("b", 2, started="05:00:30")])
    assert gangs.overlaps(JOB) == ["pod tuned-b started while nobody could watch, as those of attempt 1 went"]


@pytest.mark.parametrize("begins", ["05:00:20", "05:00:21"])
def test_an_attempt_that_began_after_the_end_of_the_one_before_is_well_also_where_nobody_watched(begins: str) -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all(
        [pod("b", 2, started=begins), pod("a", 1, "Failed", started="05:00:00", ended="05:00:20")],
    )
    assert gangs.overlaps(JOB) == []
    assert gangs.attempts(JOB) == {1, 2}


def test_a_container_whose_times_nobody_noted_is_no_overlap() -> None:
    gangs = seen(("ADDED", pod("b", 2, started="05:00:30")), ("MODIFIED", pod("b", 2, "Failed", ended="05:00:40")))
    lost = pod("a", 1, "Failed")
    lost["status"]["containerStatuses"][0]["state"] = {
        "terminated": {"reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}
    }
    never = pod("c", 3, "Failed", ended="05:00:35")
    never["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"] = "1970-01-01T00:00:00Z"
    gangs.see_all([lost, never, pod("b", 2, "Failed", started="05:00:30", ended="05:00:40")])
    assert gangs.overlaps(JOB) == []


def test_other_jobs_attempts_do_not_count_where_nobody_watched() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all([pod("b", 2, name="other", started="05:00:10")])
    assert gangs.overlaps(JOB) == gangs.overlaps(JobName("team", "other")) == []


# --- what came and went before the watch was back ---------------------------------------------------------------------


@pytest.mark.parametrize("role", ["node-0-x7k2p", "leader-0-x7k2p", "master-0", "worker-1"])
def test_an_attempt_that_came_and_went_unseen_beside_one_that_runs_is_told(role: str) -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all([pod("a", 1, started="05:00:00")])
    gangs.see_gone([PodName("team", f"tuned-a2-{role}")])
    assert gangs.overlaps(JOB) == [
        f"pod tuned-a2-{role} came and went while nobody could watch, as those of attempt 1 ran or went"
    ]


def test_an_attempt_that_came_and_went_unseen_as_another_went_is_told_because_nobody_can_tell() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")))
    gangs.see_all([])
    gangs.see_gone([PodName("team", "tuned-a2-node-0-x7k2p")])
    assert len(gangs.overlaps(JOB)) == 1


def test_two_attempts_that_both_came_and_went_unseen_are_told() -> None:
    gangs = seen()
    gangs.see_gone([PodName("team", "tuned-a2-master-0"), PodName("team", "tuned-a3-master-0")])
    assert len(gangs.overlaps(JOB)) == 1


def test_what_came_and_went_unseen_and_is_no_other_attempt_of_the_job_is_no_overlap() -> None:
    gangs = seen(("ADDED", pod("a", 1, started="05:00:00")), ("ADDED", pod("b", 3, "Failed", ended="05:00:02")))
    gangs.see_all([pod("a", 1, started="05:00:00")])
    names = ["tuned-a1-node-1-x7k2p", "tuned-prepare-x7k2p", "other-a2-node-0-x7k2p", "reader"]
    gangs.see_gone([PodName("team", name) for name in names] + [PodName("another", "tuned-a2-node-0-x7k2p")])
    assert gangs.overlaps(JOB) == []


def test_that_nobody_knows_what_came_and_went_is_held_against_every_job() -> None:
    gangs = seen(("ADDED", pod("a", 1)))
    gangs.see_nothing("etcd was compacted")
    assert gangs.overlaps(JOB) == gangs.overlaps(JobName("team", "other")) == ["etcd was compacted"]
