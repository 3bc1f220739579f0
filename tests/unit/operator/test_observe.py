"""What is there of a job, read from its raw children."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.observe import belongs_to, observe, questions
from finetune_operator.store import ObjectKey
from finetune_operator.workloads import first_failure
from tests.factories import UID
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World, set_job_condition


def _asked(world: World, seconds: float) -> tuple[ObjectKey, ...]:
    return questions(UID, tuple(world.objects.values()), world.now + timedelta(seconds=seconds))


def test_the_gang_is_the_leader_first_whatever_order_it_was_seen_in() -> None:
    world = World(LEADER_AND_WORKER).until_prepared()
    children = sorted(world.objects.values(), key=lambda body: body["metadata"]["name"], reverse=True)
    gang = observe(UID, children, {}, world.now).gangs[1]
    assert [job.child.key.name for job in gang] == ["calls-a1-leader", "calls-a1-worker"]


def test_a_pod_belongs_to_the_job_that_owns_it_and_not_to_one_of_the_same_name() -> None:
    world = World(TWO_NODES).until_prepared()
    world.make_pods(TRAIN)
    stray = objects.pod("calls-a1-node-0-stray", owner_uid="uid-of-a-deleted-job")
    world.put(stray)
    (job,) = observe(UID, tuple(world.objects.values()), {}, world.now).gangs[1]
    assert [pod.name for pod in job.pods] == ["calls-a1-node-0-x", "calls-a1-node-1-x"]


def test_a_job_that_is_failing_counts_as_failed_before_its_last_pod_has_ended() -> None:
    world = World(TWO_NODES).until_running()
    set_job_condition(world.jobs(TRAIN)[0], "FailureTarget")
    (job,) = observe(UID, tuple(world.objects.values()), {}, world.now).gangs[1]
    assert job.state == "failed"


def test_of_two_failures_the_earlier_is_the_first() -> None:
    world = World(TWO_NODES).until_running()
    first, second = world.pods(TRAIN)
    error = objects.failure_message("Error")
    first["status"] = objects.ended(error, exit_code=1, finished_at="2026-11-23T05:00:09Z")
    second["status"] = objects.ended(error, exit_code=1, finished_at="2026-11-23T05:00:08Z")
    found = first_failure(observe(UID, tuple(world.objects.values()), {}, world.now).gangs[1])
    assert found is not None
    assert found.name == second["metadata"]["name"]


def test_a_deleted_training_pod_is_told_as_deleted_and_not_as_terminated() -> None:
    world = World(TWO_NODES).until_running()
    pod = world.pods(TRAIN)[0]
    pod["metadata"]["deletionTimestamp"] = world.now.isoformat()
    pod["status"] = objects.ended(objects.failure_message("Terminated", "stopped at step 3"), exit_code=1)
    found = first_failure(observe(UID, tuple(world.objects.values()), {}, world.now).gangs[1])
    assert found is not None
    assert found.failure is not None
    assert found.failure.reason == "PodDeleted"


def test_a_pod_that_finds_no_node_is_news_only_after_some_seconds_because_claims_take_a_moment_to_bind() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, objects.unschedulable(objects.UNBOUND))
    decision = world.settle()
    assert world.condition("Prepared")[1] == "Preparing"
    assert decision.wake_after_seconds == 5
    world.advance(5)
    world.settle()
    assert world.condition("Prepared")[1] == "Unschedulable"


def test_no_events_are_asked_for_about_a_job_that_its_controller_has_not_taken_up() -> None:
    world = World(TWO_NODES)
    world.settle()
    (job,) = world.jobs(PREPARE)
    assert _asked(world, 60) == (ObjectKey("Job", "calls-prepare"), ObjectKey("PersistentVolumeClaim", "calls-shared"))
    del job["status"]["startTime"]
    assert _asked(world, 60) == (ObjectKey("PersistentVolumeClaim", "calls-shared"),)


def test_no_events_are_asked_for_while_all_goes_well() -> None:
    world = World(TWO_NODES).until_running()
    assert _asked(world, seconds=3600) == ()


def test_the_events_of_a_claim_are_asked_for_when_it_is_not_bound_after_some_seconds() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.make_pods(PREPARE)
    assert _asked(world, seconds=1) == ()
    assert _asked(world, seconds=5) == (ObjectKey("PersistentVolumeClaim", "calls-shared"),)


def test_the_events_of_a_job_are_asked_for_when_it_has_no_pods_after_some_seconds() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.bind_claims()
    assert _asked(world, seconds=5) == (ObjectKey("Job", "calls-prepare"),)


def test_the_events_of_a_pod_are_asked_for_when_it_is_being_created_for_long() -> None:
    world = World(TWO_NODES)
    world.settle()
    world.bind_claims()
    world.set_pods(PREPARE, objects.waiting("ContainerCreating"))
    assert _asked(world, seconds=5) == ()
    assert _asked(world, seconds=30) == (ObjectKey("Pod", "calls-prepare-0-x"),)


def test_only_the_jobs_owner_reference_makes_an_object_its_child() -> None:
    ours: dict[str, Any] = {"ownerReferences": [{"uid": UID, "controller": True}], "name": "calls-a1"}
    cases = {
        "ours": ({"kind": "Service", "metadata": ours}, True),
        "a Service of a former job": (
            {"kind": "Service", "metadata": {"ownerReferences": [{"uid": "former", "controller": True}]}},
            False,
        ),
        "a Service of nobody": ({"kind": "Service", "metadata": {}}, False),
        "a claim that was kept": (
            objects.claim("c", labels={"app.kubernetes.io/managed-by": "finetune-operator"}),
            True,
        ),
        "a claim of a person": (objects.claim("c"), False),
        "a claim that goes with a former job": (
            objects.claim(
                "c",
                labels={"app.kubernetes.io/managed-by": "finetune-operator"},
                ownerReferences=[{"uid": "former", "controller": True}],
            ),
            False,
        ),
    }
    assert {case: belongs_to(body, UID) for case, (body, _) in cases.items()} == {
        case: expected for case, (_, expected) in cases.items()
    }


def test_times_are_read_in_the_form_that_the_api_server_writes() -> None:
    pod = objects.pod("p", owner_uid="o")
    now = datetime(2026, 11, 23, 5, 0, 30, tzinfo=UTC)
    assert questions(UID, [pod], now) == (ObjectKey("Pod", "p"),)
