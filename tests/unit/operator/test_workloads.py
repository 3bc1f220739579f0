"""A Job and its pods put together: who failed first, who was only told to stop, and what a dead node leaves behind."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.observe import Observed, observe
from finetune_operator.workloads import JobSeen, PodSeen, first_failure
from tests.factories import UID
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, TRAIN, TWO_NODES, World, set_job_condition

Body = dict[str, Any]

TERMINATED = objects.failure_message("Terminated", "stopped by SIGTERM at step 3")
PEER_LOST = objects.failure_message("CollectiveFailed", "another process was lost")


def at(seconds: int) -> str:
    """A time in the hour in which the stories play."""
    return (datetime(2026, 11, 23, 5, 0, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()


def look(world: World) -> Observed:
    return observe(UID, tuple(world.objects.values()), {}, world.now)


def gang(world: World) -> tuple[JobSeen, ...]:
    return look(world).gangs[1]


def unanswered(world: World) -> list[PodSeen]:
    """Return the training pods that only force takes away."""
    return [pod for pod in look(world).training_pods if pod.unanswered_since is not None]


def silenced(pod: Body, seconds: int) -> None:
    """Play the node controller: the pod's node does not answer."""
    pod["spec"] = {"nodeName": "gpu-2"}
    pod["status"]["conditions"] = [
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": at(0)},
        {"type": "Ready", "status": "False", "lastTransitionTime": at(seconds)},
    ]


def told_to_leave(pod: Body, seconds: int, grace_seconds: int = 300) -> None:
    """Play whoever deletes a pod."""
    pod["metadata"]["deletionTimestamp"] = at(seconds + grace_seconds)
    pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds


def stopped(pod: Body, seconds: int, exit_code: int = 143) -> None:
    """Play the kubelet: the pod ended because it was told to."""
    pod["status"] = objects.ended(TERMINATED if exit_code == 143 else "", exit_code, finished_at=at(seconds))


def test_a_pod_whose_node_does_not_answer_has_not_failed_yet() -> None:
    world = World(TWO_NODES).until_running()
    silenced(world.pods(TRAIN)[1], seconds=60)
    (job,) = gang(world)
    assert job.pods[1].failure is None
    assert job.pods[1].node_silent is not None
    assert job.pods[1].node_silent.reason == "NodeLost"
    assert "Node gpu-2" in job.pods[1].node_silent.message
    assert "05:01:00 UTC" in job.pods[1].node_silent.message


def test_a_container_that_is_not_ready_says_nothing_about_its_node() -> None:
    world = World(TWO_NODES).until_running()
    pod = world.pods(TRAIN)[1]
    silenced(pod, seconds=60)
    pod["status"]["conditions"][0]["status"] = "False"
    assert gang(world)[0].pods[1].node_silent is None


def test_a_node_that_does_not_answer_explains_the_connections_that_others_lost() -> None:
    world = World(TWO_NODES).until_running()
    first, second = world.pods(TRAIN)
    first["status"] = objects.ended(PEER_LOST, exit_code=1)
    silenced(second, seconds=60)
    found = first_failure(gang(world))
    assert found is not None
    assert found.name == second["metadata"]["name"]
    assert found.failure is not None
    assert found.failure.reason == "NodeLost"
    assert not found.failed_by_another


def test_a_node_that_does_not_answer_does_not_explain_a_failure_with_a_cause_of_its_own() -> None:
    world = World(TWO_NODES).until_running()
    first, second = world.pods(TRAIN)
    first["status"] = objects.ended(objects.failure_message("Diverged"), exit_code=1)
    silenced(second, seconds=60)
    found = first_failure(gang(world))
    assert found is not None
    assert found.failure is not None
    assert found.failure.reason == "Diverged"


@pytest.mark.parametrize(("silent_at", "asked_at", "since"), [(60, 120, 120), (60, 30, 60)])
def test_a_pod_that_is_to_leave_a_dead_node_is_unanswered_since_both_are_so(
    silent_at: int, asked_at: int, since: int
) -> None:
    world = World(TWO_NODES).until_running()
    pod = world.pods(TRAIN)[1]
    silenced(pod, silent_at)
    told_to_leave(pod, asked_at)
    (found,) = unanswered(world)
    assert found.child.uid == pod["metadata"]["uid"]
    assert found.unanswered_since == datetime.fromisoformat(at(since))


def test_a_pod_that_never_ran_on_a_dead_node_is_unanswered_when_its_grace_period_is_over() -> None:
    world = World(TWO_NODES).until_prepared()
    pod = world.make_pods(TRAIN)[1]
    pod["spec"] = {"nodeName": "gpu-2"}
    told_to_leave(pod, 60, grace_seconds=300)
    (found,) = unanswered(world)
    assert found.unanswered_since == datetime.fromisoformat(at(360))


def _tainted_by_hand(pod: Body) -> None:
    told_to_leave(pod, 60)
    pod["status"].update(objects.disrupted("DeletionByTaintManager"))


def _ended_before_its_node_died(pod: Body) -> None:
    stopped(pod, 30)
    told_to_leave(pod, 20)
    silenced(pod, 60)


ANSWERED: dict[str, Callable[[Body], None]] = {
    "a pod that is told to leave and whose kubelet lives": lambda pod: told_to_leave(pod, 60),
    "a pod that the taint manager takes off a node that was tainted by hand": _tainted_by_hand,
    "a pod on a dead node that nobody has told to leave": lambda pod: silenced(pod, 60),
    "a pod that has ended, and whose node died afterwards": _ended_before_its_node_died,
}


@pytest.mark.parametrize("case", ANSWERED)
def test_no_force_is_needed_for(case: str) -> None:
    world = World(TWO_NODES).until_running()
    ANSWERED[case](world.pods(TRAIN)[1])
    assert unanswered(world) == []


@pytest.mark.parametrize("exit_code", [143, 137], ids=["in its grace period", "by force"])
def test_a_pod_that_somebody_deleted_is_the_cause(exit_code: int) -> None:
    world = World(TWO_NODES).until_running()
    first, second = world.pods(TRAIN)
    told_to_leave(second, 10)
    stopped(second, 14, exit_code)
    stopped(first, 14)
    found = first_failure(gang(world))
    assert found is not None
    assert found.name == second["metadata"]["name"]
    assert found.failure is not None
    assert found.failure.reason == "PodDeleted"


def test_a_pod_that_its_job_stopped_after_another_had_failed_was_deleted_by_nobody() -> None:
    world = World(TWO_NODES).until_running()
    first, second = world.pods(TRAIN)
    first["status"] = objects.ended(PEER_LOST, exit_code=1, finished_at=at(10))
    told_to_leave(second, 11)
    stopped(second, 13)
    set_job_condition(world.jobs(TRAIN)[0], "FailureTarget")
    found = first_failure(gang(world))
    assert found is not None
    assert found.failure is not None
    assert found.failure.reason == "CollectiveFailed"


def suspend(job: Body, *, spec: bool, told: bool, seconds: int) -> None:
    job["spec"]["suspend"] = spec
    condition = {"type": "Suspended", "status": "True" if told else "False", "lastTransitionTime": at(seconds)}
    job["status"] = {"conditions": [condition]}


def test_a_job_that_is_made_suspended_waits_in_its_queue() -> None:
    world = World(TWO_NODES).until_prepared()
    world.jobs(TRAIN)[0]["spec"]["suspend"] = True
    (job,) = gang(world)
    assert job.suspended
    assert job.waits is not None
    assert job.waits.reason == "Queued"


def test_the_pods_that_a_queue_takes_away_have_not_failed() -> None:
    world = World(TWO_NODES).until_running()
    suspend(world.jobs(TRAIN)[0], spec=True, told=True, seconds=10)
    first, second = world.pods(TRAIN)
    told_to_leave(first, 10)
    stopped(first, 12)
    told_to_leave(second, 10)
    (job,) = gang(world)
    assert first_failure((job,)) is None
    assert not job.running
    assert job.waits is not None
    assert job.waits.reason == "Queued"


def test_a_job_is_suspended_until_its_controller_has_seen_that_it_is_so_no_more() -> None:
    world = World(TWO_NODES).until_running()
    suspend(world.jobs(TRAIN)[0], spec=False, told=True, seconds=10)
    assert gang(world)[0].suspended


def test_pods_that_stopped_before_their_job_was_resumed_are_of_a_former_run() -> None:
    world = World(TWO_NODES).until_running()
    suspend(world.jobs(TRAIN)[0], spec=False, told=False, seconds=20)
    first, second = world.pods(TRAIN)
    told_to_leave(first, 10)  # and still leaving
    stopped(second, 12)  # by itself, because the first one was told to
    successor = objects.pod("calls-a1-node-0-y", owner_uid=world.jobs(TRAIN)[0]["metadata"]["uid"], **objects.running())
    world.put(successor)
    (job,) = gang(world)
    assert [pod.name for pod in job.pods] == ["calls-a1-node-0-y"]
    assert not job.suspended
    assert not job.running
    assert first_failure((job,)) is None


def test_a_job_that_did_not_survive_its_suspension_was_preempted() -> None:
    world = World(TWO_NODES).until_running()
    job = world.jobs(TRAIN)[0]
    set_job_condition(job, "Failed")
    job["spec"]["suspend"] = True
    world.delete("Pod", world.pods(TRAIN)[0]["metadata"]["name"])
    world.delete("Pod", world.pods(TRAIN)[0]["metadata"]["name"])
    (seen,) = gang(world)
    assert not seen.suspended
    assert seen.own_trouble is not None
    assert seen.own_trouble.reason == "Preempted"


def test_every_training_pod_that_is_not_of_an_attempt_is_in_its_way() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    stray = objects.pod("calls-a1-node-0-old", owner_uid="uid-of-a-deleted-job", **objects.running())
    stray["metadata"]["labels"] |= {"finetune.dev/stage": "train", "finetune.dev/attempt": "1"}
    ended = objects.pod("calls-a1-node-0-done", owner_uid="uid-of-a-deleted-job", **objects.ended(TERMINATED, 143))
    ended["metadata"]["labels"] |= {"finetune.dev/stage": "train", "finetune.dev/attempt": "1"}
    world.put(stray)
    world.put(ended)
    observed = look(world)
    assert [pod.name for pod in observed.in_the_way(1)] == ["calls-a1-node-0-old"]
    own = ["calls-a1-leader-0-x", "calls-a1-worker-0-x"]
    assert [pod.name for pod in observed.in_the_way(2)] == [own[0], "calls-a1-node-0-old", own[1]]


def test_a_queue_that_takes_a_gangs_place_away_ends_no_attempt() -> None:
    world = World(TWO_NODES).until_running()
    job = world.jobs(TRAIN)[0]
    suspend(job, spec=True, told=True, seconds=10)
    for pod in world.pods(TRAIN):
        told_to_leave(pod, 10)
        stopped(pod, 12)
    decision = world.settle()
    assert (world.status.phase, world.status.reason) == ("Pending", "Queued")
    assert (decision.apply, decision.delete, decision.force) == ((), (), ())
    for pod in world.pods(TRAIN):
        world.delete("Pod", pod["metadata"]["name"])
    suspend(job, spec=False, told=False, seconds=20)
    world.settle()
    assert world.status.phase == "Starting"
    world.set_pods(TRAIN, objects.running())
    world.settle()
    assert world.status.phase == "Running"
    assert [(attempt.number, attempt.ended) for attempt in world.status.attempts] == [(1, None)]
    assert world.status.restarts == 0


def test_a_pod_on_a_dead_node_is_removed_by_force_after_a_minute_and_not_before() -> None:
    world = World(TWO_NODES).until_running()
    pod = world.pods(TRAIN)[1]
    silenced(pod, seconds=60)
    told_to_leave(pod, seconds=120)
    world.now = datetime.fromisoformat(at(179))
    assert world.decide().force == ()
    world.now = datetime.fromisoformat(at(180))
    assert [child.key.name for child in world.decide().force] == [pod["metadata"]["name"]]
