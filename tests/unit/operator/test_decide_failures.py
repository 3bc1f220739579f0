"""What becomes of a job whose prepare or gang failed, and what is told as its cause."""

from typing import Any

import pytest

from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World, set_job_condition

FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "a bad row": (objects.ended(objects.failure_message("DataInvalid"), exit_code=1), "DataInvalid"),
    "a repository that is not there": (
        objects.ended(objects.failure_message("ModelUnavailable"), exit_code=1),
        "ModelUnavailable",
    ),
    "a plan that does not fit": (objects.ended(objects.failure_message("WillNotFit"), exit_code=1), "WillNotFit"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_prepare_fails_the_job_with_its_cause_and_no_gang_was_made(case: str) -> None:
    status, reason = FAILURES[case]
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, status)
    world.finish_jobs(PREPARE, "Failed")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", reason)
    assert world.conditions == {
        "Accepted": ("True", "Accepted"),
        "Prepared": ("False", reason),
        "Failed": ("True", reason),
    }
    assert world.jobs(TRAIN) == []
    assert [(event.type.value, event.reason) for event in world.events][-1] == ("Warning", reason)


def test_prepare_that_ends_well_without_a_report_is_a_wrong_image() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.ended(""))
    world.finish_jobs(PREPARE, "Complete")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "ReportMissing")


def test_a_job_seen_to_end_before_its_pod_is_no_failure_yet() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.running())
    world.settle()
    world.finish_jobs(PREPARE, "Failed")
    decision = world.settle()
    assert world.status.phase == "Preparing"
    assert decision.wake_after_seconds is not None


def test_a_failed_gang_is_taken_down_and_the_failed_job_kept_for_its_logs() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    worker = world.pods(TRAIN)[1]
    worker["status"] = objects.ended(objects.failure_message("Diverged", "loss is NaN"), exit_code=1)
    set_job_condition(world.jobs(TRAIN)[1], "Failed")
    world.settle()
    assert world.condition("Failed")[:2] == ("True", "Diverged")
    assert world.condition("Failed")[2].startswith("loss is NaN. Seen: pod calls-a1-worker-0-x")
    assert [job["metadata"]["name"] for job in world.jobs(TRAIN)] == ["calls-a1-worker"]
    assert world.status.attempts[0].reason == "Diverged"


def test_the_pod_that_failed_first_is_the_cause_and_not_those_that_lost_their_peer() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    leader, worker = world.pods(TRAIN)
    lost = objects.failure_message("CollectiveFailed", "connection closed by peer")
    leader["status"] = objects.ended(lost, exit_code=1, finished_at="2026-11-23T05:00:01Z")
    decision = world.settle()
    assert world.status.phase == "Running"
    assert decision.wake_after_seconds is not None
    worker["status"] = objects.ended("", exit_code=137, reason="OOMKilled", finished_at="2026-11-23T05:00:02Z")
    world.settle()
    assert world.status.reason == "OOMKilled"


def test_a_gang_of_which_a_node_was_lost_is_taken_down_although_the_lost_pod_never_ends() -> None:
    world = World(TWO_NODES).until_running()
    world.pods(TRAIN)[1]["status"] = objects.running() | objects.disrupted("DeletionByTaintManager")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", "NodeLost")
    assert world.jobs(TRAIN) == []


def test_a_worker_that_stumbles_after_rank_0_has_reported_spoils_nothing() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    leader, worker = world.pods(TRAIN)
    leader["status"] = objects.ended(objects.TRAINED_MESSAGE)
    worker["status"] = objects.ended("", exit_code=134)
    for job, condition in zip(world.jobs(TRAIN), ("Complete", "Failed"), strict=True):
        set_job_condition(job, condition)
    world.settle()
    assert world.status.phase == "Succeeded"


def test_a_lost_peer_is_the_cause_when_nobody_says_more_in_time() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    lost = objects.failure_message("CollectiveFailed", "connection closed by peer")
    leader = world.pods(TRAIN)[0]
    leader["status"] = objects.ended(lost, exit_code=1, finished_at=world.now.isoformat())
    decision = world.settle()
    assert decision.wake_after_seconds == 15
    world.advance(15)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", "CollectiveFailed")


def test_a_failed_gang_whose_pods_are_gone_starts_again_with_what_its_job_says() -> None:
    world = World(TWO_NODES).until_running()
    for pod in world.pods(TRAIN):
        world.delete("Pod", pod["metadata"]["name"])
    set_job_condition(world.jobs(TRAIN)[0], "Failed", "Job has reached the specified backoff limit")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", "JobFailed")
    assert "backoff limit" in world.condition("Running")[2]
