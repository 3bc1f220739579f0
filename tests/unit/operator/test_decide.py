"""How a job goes from `kubectl apply` to its adapter, and what becomes of it when something is in its way."""

from typing import Any

import pytest

from finetune_operator.causes import Trouble
from finetune_operator.decide import refuse
from finetune_operator.status import Moment
from finetune_operator.store import ObjectKey
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World, set_job_condition


def _conditions(world: World) -> dict[str, tuple[str, str]]:
    return {condition.type.value: (condition.status.value, condition.reason) for condition in world.status.conditions}


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
    assert _conditions(world) == {"Accepted": ("True", "Accepted"), "Prepared": ("False", "Preparing")}
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


WAITING: dict[str, tuple[dict[str, Any], str, str]] = {
    "no node has room": (objects.unschedulable(), "Unschedulable", "2 Insufficient nvidia.com/gpu"),
    "the image is not there": (objects.waiting("ErrImagePull", "not found"), "ImagePullFailed", "not found"),
    "the container cannot be made": (
        objects.waiting("CreateContainerConfigError", 'secret "tokens" not found'),
        "ContainerNotCreated",
        'secret "tokens" not found',
    ),
}


@pytest.mark.parametrize("case", WAITING)
def test_a_prepare_pod_that_cannot_start_is_told_in_prepared_and_the_job_waits(case: str) -> None:
    status, reason, words = WAITING[case]
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, status)
    world.advance(10)
    world.settle()
    answer, told_reason, message = world.condition("Prepared")
    assert (answer, told_reason) == ("False", reason)
    assert words in message
    assert (world.status.phase, world.status.reason) == ("Pending", reason)
    assert ("Warning", reason) in [(event.type.value, event.reason) for event in world.events]


@pytest.mark.parametrize("case", WAITING)
def test_a_training_pod_that_cannot_start_is_told_in_running_and_the_job_waits(case: str) -> None:
    status, reason, words = WAITING[case]
    world = World(TWO_NODES).until_prepared()
    world.set_pods(TRAIN, status)
    world.advance(10)
    world.settle()
    answer, told_reason, message = world.condition("Running")
    assert (answer, told_reason) == ("False", reason)
    assert words in message
    assert (world.status.phase, world.status.reason) == ("Pending", reason)
    assert ("Warning", reason) in [(event.type.value, event.reason) for event in world.events]


def test_a_gang_that_found_its_nodes_is_starting_again() -> None:
    world = World(TWO_NODES).until_prepared()
    world.set_pods(TRAIN, objects.unschedulable())
    world.advance(10)
    world.settle()
    world.set_pods(TRAIN, objects.waiting("ContainerCreating"))
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Starting", "Starting")


def test_a_missing_storage_class_is_told_rather_than_the_pod_that_waits_for_it() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.unschedulable(objects.UNBOUND))
    world.warnings = {
        ObjectKey("PersistentVolumeClaim", "calls-shared"): [objects.warning("ProvisioningFailed", objects.NO_CLASS)]
    }
    decision = world.settle()
    assert world.condition("Prepared")[1] == "StorageClassMissing"
    assert decision.wake_after_seconds is not None


def test_pods_that_the_namespace_refuses_are_told() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.warnings = {ObjectKey("Job", "calls-prepare"): [objects.warning("FailedCreate", objects.QUOTA)]}
    world.settle()
    assert world.condition("Prepared")[1] == "PodsRefused"
    assert "exceeded quota: small" in world.condition("Prepared")[2]


def test_an_existing_claim_that_is_missing_is_waited_for() -> None:
    world = World({"storage": {"shared": {"claimName": "data", "size": None, "storageClassName": None}}})
    decision = world.settle()
    assert decision.apply == ()
    assert decision.wake_after_seconds is not None
    assert _conditions(world) == {"Accepted": ("Unknown", "ClaimMissing"), "Prepared": ("False", "ClaimMissing")}
    assert "data" in world.condition("Prepared")[2]
    world.put(objects.claim("data"))
    world.settle()
    assert _conditions(world)["Accepted"] == ("True", "Accepted")
    assert world.names("Job") == ["calls-prepare"]


def test_an_object_of_somebody_else_with_our_name_is_told_and_not_touched() -> None:
    world = World(TWO_NODES)
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "calls-config", "uid": "theirs"}}
    world.put(foreign)
    decision = world.settle()
    assert decision.apply == ()
    assert world.condition("Prepared")[1] == "NameTaken"
    assert "ConfigMap calls-config" in world.condition("Prepared")[2]
    world.delete("ConfigMap", "calls-config")
    world.settle()
    assert world.names("Job") == ["calls-prepare"]


def test_children_of_a_deleted_job_of_the_same_name_are_waited_out() -> None:
    former = World(TWO_NODES).until_prepared()
    world = World(TWO_NODES)
    world.objects = dict(former.objects)
    for body in world.objects.values():
        for reference in body["metadata"].get("ownerReferences", ()):
            if reference["kind"] == "FineTuneJob":
                reference["uid"] = "uid-of-the-former-job"
    decision = world.settle()
    assert (decision.apply, decision.delete) == ((), ())
    assert world.condition("Prepared")[1] == "FormerJobLeaving"
    assert ("Normal", "FormerJobLeaving") in [(event.type.value, event.reason) for event in world.events]


def test_a_gang_is_made_only_when_the_pods_of_a_deleted_one_are_gone() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.bind_claims()
    former = world.stored(objects.pod("calls-a1-node-0-old", owner_uid="of-a-deleted-job", **objects.running()))
    former["metadata"]["labels"] |= {"finetune.dev/stage": "train", "finetune.dev/attempt": "1"}
    world.put(former)
    world.set_pods(PREPARE, objects.ended(objects.PREPARED_MESSAGE))
    world.finish_jobs(PREPARE, "Complete")
    decision = world.settle()
    assert (decision.apply, world.jobs(TRAIN)) == ((), [])
    assert (world.status.phase, world.status.reason) == ("Pending", "FormerJobLeaving")
    assert "calls-a1-node-0-old" in world.condition("Running")[2]
    assert decision.wake_after_seconds is not None
    former["status"] = objects.ended("", exit_code=143)
    world.settle()
    assert world.names("Job") == ["calls-a1-node", "calls-prepare"]
    assert world.status.phase == "Starting"


def test_a_gang_that_runs_does_not_mind_a_stray_pod() -> None:
    world = World(TWO_NODES).until_running()
    stray = world.stored(objects.pod("stray", owner_uid="of-nobody", **objects.running()))
    stray["metadata"]["labels"]["finetune.dev/stage"] = "train"
    world.put(stray)
    world.settle()
    assert world.status.phase == "Running"


def test_the_claims_that_a_deleted_job_of_the_same_name_left_are_used_again() -> None:
    former = World(TWO_NODES)
    former.settle()
    world = World(TWO_NODES)
    world.put(former.objects[ObjectKey("PersistentVolumeClaim", "calls-shared")])
    decision = world.step()
    assert [manifest["kind"] for manifest in decision.apply] == ["ConfigMap", "Job"]


def test_what_the_api_server_refuses_to_make_is_told_and_tried_again() -> None:
    world = World(TWO_NODES)
    world.obstacle = Trouble("Refused", "exceeded quota: storage")
    decision = world.settle()
    assert world.condition("Prepared") == ("False", "Refused", "exceeded quota: storage")
    assert decision.wake_after_seconds is not None


def test_an_obstacle_does_not_stop_a_gang_that_runs() -> None:
    world = World(TWO_NODES).until_running()
    world.obstacle = Trouble("Refused", "configmaps is forbidden")
    decision = world.settle()
    assert (world.status.phase, decision.apply) == ("Running", ())


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
    assert _conditions(world) == {
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


def test_a_prepare_job_whose_pod_was_deleted_with_its_report_is_made_again() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.ended(objects.PREPARED_MESSAGE))
    world.finish_jobs(PREPARE, "Complete")
    world.delete("Pod", world.pods(PREPARE)[0]["metadata"]["name"])
    decision = world.step()
    assert [child.key for child in decision.delete] == [ObjectKey("Job", "calls-prepare")]
    decision = world.step()
    assert [manifest["metadata"]["name"] for manifest in decision.apply] == ["calls-prepare"]


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


@pytest.mark.parametrize("kind_and_name", [("ConfigMap", "calls-config"), ("Job", "calls-prepare")])
def test_a_child_that_somebody_deleted_while_preparing_is_made_again(kind_and_name: tuple[str, str]) -> None:
    world = World(TWO_NODES)
    world.settle()
    world.delete(*kind_and_name)
    world.settle()
    assert ObjectKey(*kind_and_name) in world.objects


@pytest.mark.parametrize("kind_and_name", [("ConfigMap", "calls-config"), ("Service", "calls-a1")])
def test_a_child_that_somebody_deleted_while_training_is_made_again(kind_and_name: tuple[str, str]) -> None:
    world = World(TWO_NODES).until_running()
    world.delete(*kind_and_name)
    world.settle()
    assert ObjectKey(*kind_and_name) in world.objects
    assert world.status.phase == "Running"


def test_a_prepare_job_deleted_after_it_was_done_is_not_missed() -> None:
    world = World(TWO_NODES).until_running()
    world.delete("Job", "calls-prepare")
    world.settle()
    assert world.jobs(PREPARE) == []
    assert world.status.phase == "Running"


def test_a_training_job_deleted_before_it_trained_is_made_again() -> None:
    world = World(LEADER_AND_WORKER).until_prepared()
    world.delete("Job", "calls-a1-worker")
    world.settle()
    assert world.names("Job") == ["calls-a1-leader", "calls-a1-worker", "calls-prepare"]


def test_a_training_job_deleted_while_it_trained_ends_the_attempt_and_frees_the_other_nodes() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    world.delete("Job", "calls-a1-worker")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", "TrainJobDeleted")
    assert world.jobs(TRAIN) == []


def test_a_config_that_an_older_operator_made_follows_the_plan_and_a_job_does_not() -> None:
    world = World(TWO_NODES)
    world.settle()
    for name in (ObjectKey("ConfigMap", "calls-config"), ObjectKey("Job", "calls-prepare")):
        world.objects[name]["metadata"]["annotations"]["finetune.dev/manifest-digest"] = "sha256:of-an-older-operator"
    decision = world.step()
    assert [manifest["kind"] for manifest in decision.apply] == ["ConfigMap"]


def test_what_is_being_deleted_is_waited_for_and_neither_changed_nor_deleted_again() -> None:
    world = World(LEADER_AND_WORKER).until_running()
    config = world.objects[ObjectKey("ConfigMap", "calls-config")]["metadata"]
    config["annotations"]["finetune.dev/manifest-digest"] = "sha256:of-an-older-operator"
    leaving = [config, *(job["metadata"] for job in world.jobs(TRAIN))]
    for metadata in leaving:
        metadata["deletionTimestamp"] = world.now.isoformat()
    decision = world.step()
    assert (decision.apply, [child.key.kind for child in decision.delete]) == ((), ["Service"])
    assert world.status.reason == "TrainJobDeleted"

    world = World(TWO_NODES)
    world.settle()
    world.objects[ObjectKey("ConfigMap", "calls-config")]["metadata"] |= {
        "deletionTimestamp": world.now.isoformat(),
        "annotations": {},
    }
    assert world.step().apply == ()


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
    assert _conditions(world)["Accepted"] == ("True", "Accepted")
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
