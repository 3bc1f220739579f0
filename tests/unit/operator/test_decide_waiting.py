"""What a job waits for, and how it tells that."""

from typing import Any

import pytest

from finetune_operator.causes import Trouble
from finetune_operator.store import ObjectKey
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import PREPARE, TRAIN, TWO_NODES, World

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
    assert world.conditions == {"Accepted": ("Unknown", "ClaimMissing"), "Prepared": ("False", "ClaimMissing")}
    assert "data" in world.condition("Prepared")[2]
    world.put(objects.claim("data"))
    world.settle()
    assert world.conditions["Accepted"] == ("True", "Accepted")
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
