"""What becomes of a job of which somebody deletes or changes a child."""

import pytest

from finetune_operator.store import ObjectKey
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World


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
