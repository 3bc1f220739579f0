"""How a job goes from `kubectl apply` to its adapter, or is refused."""

from typing import Any

import pytest

from finetune_operator.decide import refuse
from finetune_operator.status import Moment
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World, set_job_condition


@pytest.mark.parametrize("stage", [PREPARE, TRAIN])
def test_a_job_that_its_controller_has_not_begun_with_is_left_to_the_watch(stage: str) -> None:
    world = World({"compute": {"nodes": 2, "device": "cpu"}})
    world.settle()
    world.bind_claims()
    if stage == TRAIN:
        world.until_prepared()
    (job,) = world.jobs(stage)
    begun = job.pop("status")
    assert world.settle().wake_after_seconds is None
    job["status"] = begun
    assert world.settle().wake_after_seconds == 5


def test_a_job_whose_pods_do_not_come_is_looked_at_each_time_after_as_long_as_it_has_waited() -> None:
    world = World({"compute": {"nodes": 2, "device": "cpu"}})
    world.settle()
    world.bind_claims()
    world.until_prepared()
    waits_seconds = []
    for _ in range(8):
        wake_after_seconds = world.settle().wake_after_seconds
        assert wake_after_seconds is not None
        waits_seconds.append(wake_after_seconds)
        world.advance(wake_after_seconds)
    assert waits_seconds == [5, 5, 10, 20, 40, 80, 160, 300]


def test_a_new_job_is_accepted_and_gets_its_claims_its_config_and_the_prepare_job_at_once() -> None:
    world = World(LEADER_AND_WORKER)
    decision = world.step()
    made = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in decision.apply]
    assert made == [
        ("PersistentVolumeClaim", "calls-shared"),
        ("PersistentVolumeClaim", "calls-network"),
        ("ConfigMap", "calls-config"),
        ("Job", "calls-prepare"),
    ]
    assert world.conditions == {"Accepted": ("True", "Accepted"), "Prepared": ("False", "Preparing")}
    assert world.status.phase == "Preparing"


def test_what_prepare_reported_is_the_plan_and_the_gang_is_made_in_the_same_round() -> None:
    world = World(LEADER_AND_WORKER)
    world.settle()
    world.set_pods(PREPARE, objects.ended(objects.PREPARED_MESSAGE))
    world.finish_jobs(PREPARE, "Complete")
    decision = world.step()
    assert [manifest["metadata"]["name"] for manifest in decision.apply] == [
        "calls-a1",
        "calls-a1-leader",
        "calls-a1-worker",
    ]
    assert world.status.plan is not None
    assert world.status.plan.total_steps == 30
    assert world.status.phase == "Starting"
    assert [attempt.number for attempt in world.status.attempts] == [1]


def test_a_gang_runs_when_every_pod_of_it_runs() -> None:
    world = World(TWO_NODES).until_prepared()
    first, second = world.make_pods(TRAIN)
    first["status"] = objects.running()
    world.settle()
    assert world.status.phase == "Starting"
    second["status"] = objects.running()
    decision = world.settle()
    assert world.status.phase == "Running"
    assert decision.wake_after_seconds == 2


def test_rank_0_is_asked_soon_until_it_is_heard_and_then_in_the_interval_that_was_set() -> None:
    world = World(TWO_NODES).until_running()
    waits = []
    for _ in range(5):
        waits.append(world.settle().wake_after_seconds)
        world.advance(waits[-1] or 0)
    assert waits == [2, 2, 4, 8, 10]
    world.heard = objects.heard(step=1, last_step_time=world.now.isoformat())
    assert world.settle().wake_after_seconds == 10
    world.advance(120)
    assert world.settle().wake_after_seconds == 30


def test_a_gang_that_ran_does_not_start_again_while_its_pods_end_one_by_one() -> None:
    world = World(TWO_NODES).until_prepared()
    world.set_pods(TRAIN, objects.running())
    world.settle()
    first, _ = world.pods(TRAIN)
    first["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    first["status"]["containerStatuses"][0] |= {"ready": False, "state": {"terminated": {"exitCode": 0}}}
    world.settle()
    assert world.status.phase == "Running"
    assert "Starting" not in [event.reason for event in world.events]


def test_a_prepare_pod_that_has_just_ended_is_not_told_to_start_again() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.running())
    world.settle()
    (pod,) = world.pods(PREPARE)
    pod["status"]["containerStatuses"][0] |= {"ready": False, "state": {"terminated": {"exitCode": 0}}}
    world.settle()
    assert world.status.phase == "Preparing"


def test_progress_is_what_rank_0_says() -> None:
    world = World(TWO_NODES).until_running()
    world.heard = objects.heard(step=12, epoch=2, loss=2.34567)
    world.settle()
    progress = world.status.progress
    assert progress is not None
    assert (progress.steps, progress.loss_text, progress.epoch) == ("12/30", "2.346", 2)


def test_a_finished_gang_is_success_with_the_result_of_rank_0() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    world.set_pods(TRAIN, objects.ended({"reason": "Succeeded", "message": "done"}))
    leader = world.pods(TRAIN)[0]
    leader["status"] = objects.ended(objects.TRAINED_MESSAGE)
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    assert world.status.phase == "Succeeded"
    assert world.status.result is not None
    assert world.status.result.adapter_digest == "sha256:00ff"
    assert world.condition("Complete") == (
        "True",
        "Succeeded",
        "Loss 5.500 -> 2.250 in 30 steps; the adapter is in jobs/team/demo/uid/adapter on the shared filesystem.",
    )
    assert world.status.attempts[0].ended is not None


def test_a_finished_job_tells_the_checkpoint_of_its_last_step() -> None:
    world = World(TWO_NODES).until_prepared()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    assert world.status.result is not None
    assert world.status.checkpoint is not None
    assert world.status.checkpoint.step == world.status.result.steps == 30


def test_a_leader_that_is_done_waits_for_its_workers() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    leader_pod, _ = world.pods(TRAIN)
    leader_pod["status"] = objects.ended(objects.TRAINED_MESSAGE)
    set_job_condition(world.jobs(TRAIN)[0], "Complete")
    world.settle()
    assert world.status.phase == "Running"


def test_the_events_tell_the_story_once_each() -> None:
    world = World(TWO_NODES).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    told = [(event.type.value, event.reason) for event in world.events]
    assert told == [
        ("Normal", "Accepted"),
        ("Normal", "Prepared"),
        ("Normal", "Running"),
        ("Normal", "Succeeded"),
    ]


def test_a_gang_seen_to_be_complete_before_its_pods_waits_for_the_report_of_rank_0() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    world.finish_jobs(TRAIN, "Complete")
    decision = world.settle()
    assert (world.status.phase, decision.wake_after_seconds) == ("Running", 5)
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.settle()
    assert world.status.result is not None


def test_an_invalid_spec_makes_no_object_and_names_every_problem() -> None:
    world = World()
    decision = refuse(world.status, ["spec.a: is wrong", "spec.b: is missing"], Moment(world.now, 1))
    assert (decision.apply, decision.delete) == ((), ())
    (accepted,) = decision.status.conditions
    assert (accepted.type, accepted.status, accepted.reason) == ("Accepted", "False", "InvalidSpec")
    assert "spec.a: is wrong; spec.b: is missing" in accepted.message


def test_a_spec_that_was_mended_is_accepted() -> None:
    world = World(TWO_NODES)
    refused = refuse(world.status, ["spec.a: is wrong"], Moment(world.now, 1))
    world.body["status"] = refused.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    world.settle()
    assert world.conditions["Accepted"] == ("True", "Accepted")
    assert world.status.phase == "Preparing"


def test_a_finished_job_is_never_refused() -> None:
    world = World(TWO_NODES).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    assert refuse(world.status, ["spec.a: is wrong"], Moment(world.now, 2)).status == world.status


def test_the_names_of_a_job_of_63_characters_stay_within_what_kubernetes_takes() -> None:
    world = World(LEADER_AND_WORKER, name="x" * 63).until_running()
    assert all(len(key.name) <= 63 for key in world.objects if key.kind != "Pod")
    assert world.status.phase == "Running"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({}, "meta-llama/Llama-3.1-8B-Instruct"),
        ({"huggingFace": None, "path": "models/our-own"}, "models/our-own"),
    ],
    ids=["a repository", "a directory"],
)
def test_the_model_is_told_wherever_it_comes_from(model: dict[str, Any], told: str) -> None:
    world = World({"model": model})
    world.settle()
    assert world.status.model == told


def test_a_job_that_waits_for_a_claim_tells_its_model_already() -> None:
    world = World({"storage": {"shared": {"claimName": "data", "size": None, "storageClassName": None}}})
    world.settle()
    assert world.status.model == "meta-llama/Llama-3.1-8B-Instruct"
