"""Suspending and resuming: the GPUs are free, nothing is lost, and it counts as no failure."""

import pytest

from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World, set_job_condition


def _suspended_while_training() -> World:
    world = World(LEADER_AND_WORKER).until_running()
    world.heard = objects.heard(step=17, checkpoint=objects.checkpoint(10))
    world.settle()
    world.heard, world.lingers = None, True
    world.suspend(True)
    world.settle()
    return world


def test_a_training_that_is_suspended_is_told_to_stop_and_gets_its_grace_period() -> None:
    world = _suspended_while_training()
    assert (world.status.phase, world.status.reason) == ("Suspending", "Suspending")
    assert world.condition("Suspended")[0] == "False"
    assert all("deletionTimestamp" in pod["metadata"] for pod in world.pods(TRAIN))
    (attempt,) = world.status.attempts
    assert attempt.reason == "Suspended"
    assert attempt.ended is not None


def test_a_job_is_suspended_only_when_its_last_pod_is_gone() -> None:
    world = _suspended_while_training()
    world.advance(200)
    assert world.step().wake_after_seconds == 5
    assert world.condition("Suspended")[0] == "False"
    world.let_go()
    decision = world.settle()
    assert (world.status.phase, decision.wake_after_seconds) == ("Suspended", None)
    assert world.condition("Suspended")[0] == "True"
    assert world.condition("Running")[:2] == ("False", "Suspended")
    assert world.names("PersistentVolumeClaim") == ["calls-network", "calls-shared"]
    assert world.names("Job") == ["calls-prepare"]


def test_the_checkpoint_that_was_written_for_it_is_told_with_what_to_do() -> None:
    world = _suspended_while_training()
    progress = objects.report(step=18, checkpoint=objects.checkpoint(18)).model_dump(by_alias=True)
    last_word = objects.failure_message("Terminated") | {"progress": progress}
    world.pods(TRAIN)[0]["status"] = objects.ended(last_word, exit_code=143)
    world.settle()
    world.let_go()
    world.settle()
    assert "Set spec.suspend to false to go on from the checkpoint of step 18" in world.condition("Suspended")[2]
    assert world.status.attempts[0].steps_lost == 0


def test_pods_that_stop_because_they_were_told_to_are_no_failure() -> None:
    world = _suspended_while_training()
    world.set_pods(TRAIN, objects.ended(objects.failure_message("Terminated"), exit_code=143))
    for job in world.jobs(TRAIN):
        set_job_condition(job, "Failed")
    world.settle()
    world.let_go()
    world.settle()
    assert (world.status.phase, world.status.restarts) == ("Suspended", 0)


def test_a_resumed_job_goes_on_at_once_as_a_new_attempt_that_is_no_restart() -> None:
    world = _suspended_while_training()
    world.let_go()
    world.settle()
    world.lingers = False
    world.suspend(False)
    world.settle()
    assert world.names("Job") == ["calls-a2-leader", "calls-a2-worker", "calls-prepare"]
    assert (world.status.phase, world.status.restarts) == ("Starting", 0)
    assert world.condition("Suspended")[:2] == ("False", "Resumed")
    assert [event.reason for event in world.events][-5:] == [
        "Running",
        "Suspending",
        "Suspended",
        "Resumed",
        "Starting",
    ]


def test_an_operator_that_is_killed_while_it_resumes_a_job_leaves_no_pods_of_a_job_that_is_called_suspended() -> None:
    world = _suspended_while_training()
    world.let_go()
    world.settle()
    world.suspend(False)
    jobs = world.names("Job")
    decision = world.step(killed_after="made")
    assert (decision.apply, decision.wake_after_seconds, world.names("Job")) == ((), 0, jobs)
    world.step(killed_after="told")
    assert (world.status.phase, world.status.reason, world.names("Job")) == ("Pending", "Resumed", jobs)
    world.settle()
    assert world.status.phase == "Starting"


def test_a_job_that_is_resumed_while_it_is_being_suspended_waits_for_its_old_pods() -> None:
    world = _suspended_while_training()
    world.suspend(False)
    decision = world.settle()
    assert (decision.apply, decision.wake_after_seconds) == ((), 5)
    assert (world.status.phase, world.status.reason) == ("Pending", "FormerJobLeaving")
    world.let_go()
    world.settle()
    assert "calls-a2-leader" in world.names("Job")


def test_five_times_suspended_and_resumed_is_six_attempts_and_no_restart() -> None:
    world = World(TWO_NODES).until_running()
    for _ in range(5):
        world.suspend(True)
        world.settle()
        assert world.status.phase == "Suspended"
        world.suspend(False)
        world.settle()
        world.set_pods(TRAIN, objects.running())
        world.settle()
    assert [attempt.number for attempt in world.status.attempts] == [1, 2, 3, 4, 5, 6]
    assert (world.status.phase, world.status.restarts) == ("Running", 0)


def test_a_job_that_is_suspended_when_it_is_made_makes_nothing_and_can_still_be_changed() -> None:
    world = World(TWO_NODES)
    world.suspend(True)
    decision = world.settle()
    assert (decision.apply, world.objects) == ((), {})
    assert world.status.phase == "Suspended"
    assert {condition.type for condition in world.status.conditions} == {"Suspended"}
    world.suspend(False)
    world.settle()
    assert world.names("Job") == ["calls-prepare"]


def test_preparing_is_stopped_and_done_anew_when_the_job_is_resumed() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.running())
    world.settle()
    world.suspend(True)
    world.settle()
    assert (world.status.phase, world.jobs(PREPARE)) == ("Suspended", [])
    assert world.condition("Prepared")[:2] == ("False", "Suspended")
    world.suspend(False)
    world.settle()
    assert world.names("Job") == ["calls-prepare"]
    assert world.status.prepare_failures == ()


def test_what_prepare_had_just_reported_is_kept() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.ended(objects.PREPARED_MESSAGE))
    world.finish_jobs(PREPARE, "Complete")
    world.suspend(True)
    world.settle()
    assert world.condition("Prepared")[0] == "True"
    assert (world.status.phase, world.jobs(TRAIN)) == ("Suspended", [])


def test_a_training_that_had_just_succeeded_is_not_done_once_more() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.suspend(True)
    world.settle()
    assert world.status.phase == "Succeeded"
    assert world.status.result is not None


def test_a_failure_that_came_first_is_told_as_what_it_was() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    world.pods(TRAIN)[1]["status"] = objects.ended("", exit_code=137, reason="OOMKilled")
    set_job_condition(world.jobs(TRAIN)[1], "Failed")
    world.suspend(True)
    world.settle()
    assert world.status.phase == "Suspended"
    assert [attempt.reason for attempt in world.status.attempts] == ["OOMKilled"]


@pytest.mark.parametrize("suspended", [True, False])
def test_a_finished_job_does_not_mind_being_suspended_or_resumed(suspended: bool) -> None:
    world = World(LEADER_AND_WORKER).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    before = world.status
    world.suspend(suspended)
    world.settle()
    assert world.status == before
