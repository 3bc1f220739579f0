"""What happens next to a job that trains as a PyTorchJob: the stories of the others, where the back-end has a part."""

import pytest

from finetune_operator.training_operator import why_backend_is_missing
from tests.factories import merged
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, TRAIN, World, set_job_condition

ON_PYTORCH_JOB = merged(LEADER_AND_WORKER, {"compute": {"backend": "PyTorchJob"}})
MISSING = why_backend_is_missing("PyTorchJob")


def test_a_gang_is_one_pytorch_job_and_no_service_of_ours() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    assert world.names("PyTorchJob") == ["calls-a1"]
    assert world.names("Service") == []
    assert world.names("Job") == ["calls-prepare"]
    assert world.status.phase == "Running"


def test_a_worker_that_fails_ends_the_attempt_and_the_next_one_is_a_pytorch_job_of_its_own() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    world.pods(TRAIN)[1]["status"] = objects.ended("", exit_code=137, reason="OOMKilled")
    set_job_condition(world.jobs(TRAIN)[0], "Failed")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", "OOMKilled")
    assert world.names("PyTorchJob") == []
    world.advance(10)
    world.settle()
    assert world.names("PyTorchJob") == ["calls-a2"]


def test_suspend_takes_the_pytorch_job_away_and_the_job_goes_on_with_another() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    world.suspend(True)
    world.settle()
    assert world.status.phase == "Suspended"
    assert (world.names("PyTorchJob"), world.pods(TRAIN)) == ([], [])
    world.suspend(False)
    world.settle()
    assert world.names("PyTorchJob") == ["calls-a2"]
    assert world.status.restarts == 0


def test_a_success_of_the_master_alone_leaves_the_job_running() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    world.pods(TRAIN)[0]["status"] = objects.ended()
    set_job_condition(world.jobs(TRAIN)[0], "Succeeded")
    decision = world.settle()
    assert world.status.phase == "Running"
    assert (decision.apply, decision.delete) == ((), ())


def test_a_success_whose_worker_was_taken_away_before_the_end_is_tried_again() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    master, worker = world.pods(TRAIN)
    master["status"] = objects.ended()
    set_job_condition(world.jobs(TRAIN)[0], "Succeeded")
    world.delete("Pod", worker["metadata"]["name"])
    world.settle()
    assert (world.status.phase, world.status.attempts[0].reason) == ("Restarting", "JobFailed")


def test_a_master_that_has_left_an_adapter_is_a_success_before_the_pytorch_job_says_so() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    master, worker = world.pods(TRAIN)
    master["status"] = objects.ended(objects.TRAINED_MESSAGE)
    world.delete("Pod", worker["metadata"]["name"])
    world.settle()
    assert world.status.result is not None
    assert len(world.status.attempts) == 1


def test_a_job_is_not_accepted_and_nothing_is_made_while_its_back_end_is_missing() -> None:
    world = World(ON_PYTORCH_JOB)
    world.lacking = MISSING
    decision = world.settle()
    assert decision.wake_after_seconds == 5
    assert world.condition("Accepted")[:2] == ("Unknown", "BackendMissing")
    assert world.objects == {}
    world.lacking = None
    world.settle()
    assert world.condition("Accepted")[0] == "True"


def test_a_back_end_that_goes_away_while_the_job_prepares_is_told_when_it_is_needed() -> None:
    world = World(ON_PYTORCH_JOB)
    world.settle()
    world.lacking = MISSING
    world.until_prepared()
    assert (world.status.phase, world.status.reason) == ("Pending", "BackendMissing")
    assert world.status.attempts == ()
    world.lacking = None
    world.settle()
    assert world.names("PyTorchJob") == ["calls-a1"]


def test_a_back_end_that_is_taken_away_with_its_gang_is_waited_for_and_the_job_goes_on() -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    world.lacking = MISSING
    world.delete("PyTorchJob", "calls-a1")
    world.settle()
    assert world.status.attempts[0].reason == "TrainJobDeleted"
    world.advance(10)
    world.settle()
    assert world.status.reason == "BackendMissing"
    world.lacking = None
    world.settle()
    assert world.names("PyTorchJob") == ["calls-a2"]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_asks_for_no_back_end(phase: str) -> None:
    world = World(ON_PYTORCH_JOB).until_running()
    ending = (objects.TRAINED_MESSAGE, 0) if phase == "Succeeded" else (objects.failure_message("Diverged"), 1)
    world.set_pods(TRAIN, objects.ended(ending[0], exit_code=ending[1]))
    set_job_condition(world.jobs(TRAIN)[0], phase)
    world.settle()
    world.lacking = MISSING
    world.settle()
    assert world.status.phase == phase
