"""What holds for a job whatever its children do, in any order: chaos played by hypothesis."""

from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.status import is_finished
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, World, set_job_condition

POD_STATUSES: dict[str, Any] = {
    "new": {"phase": "Pending"},
    "unschedulable": objects.unschedulable(),
    "no image": objects.waiting("ImagePullBackOff", "not found"),
    "being created": objects.waiting("ContainerCreating"),
    "running": objects.running(),
    "prepared": objects.ended(objects.PREPARED_MESSAGE),
    "trained": objects.ended(objects.TRAINED_MESSAGE),
    "failed": objects.ended(objects.failure_message("Error"), exit_code=1),
    "lost its peer": objects.ended(objects.failure_message("CollectiveFailed"), exit_code=1),
    "preempted": objects.disrupted("PreemptionByScheduler"),
}
TOLD_BY_WATCH = {"Unschedulable", "ImagePullFailed", "ContainerNotCreated", "Queued"}
HEARD = [None, objects.heard(step=3, loss=float("nan"))]

turns = st.one_of(
    st.tuples(st.just("pod"), st.integers(0, 5), st.sampled_from(sorted(POD_STATUSES))),
    st.tuples(st.just("job"), st.integers(0, 5), st.sampled_from(["Complete", "FailureTarget", "Failed", "Suspended"])),
    st.tuples(st.just("delete"), st.integers(0, 15), st.none()),
    st.tuples(st.just("leave"), st.integers(0, 15), st.none()),
    st.tuples(st.just("bind claims"), st.none(), st.none()),
    st.tuples(st.just("scrape"), st.integers(0, 1), st.none()),
    st.tuples(st.just("advance"), st.integers(1, 60), st.none()),
)


def _play(world: World, turn: tuple[str, Any, Any]) -> None:
    verb, which, what = turn
    pods = [*world.make_pods(PREPARE), *world.make_pods(TRAIN)]
    jobs = [*world.jobs(PREPARE), *world.jobs(TRAIN)]
    if verb == "pod" and pods:
        pods[which % len(pods)]["status"] = deepcopy(POD_STATUSES[what])
    elif verb == "job" and jobs:
        set_job_condition(jobs[which % len(jobs)], what)
    elif verb == "delete" and world.objects:
        world.remove(sorted(world.objects)[which % len(world.objects)])
    elif verb == "leave" and world.objects:
        key = sorted(world.objects)[which % len(world.objects)]
        world.objects[key]["metadata"]["deletionTimestamp"] = world.now.isoformat()
    elif verb == "bind claims":
        world.bind_claims()
    elif verb == "scrape":
        world.heard = HEARD[which]
    elif verb == "advance":
        world.advance(which)


@settings(max_examples=60, deadline=None)
@given(st.lists(turns, max_size=25))
def test_whatever_happens_a_job_comes_to_rest_and_a_finished_one_never_moves(story: list[tuple[str, Any, Any]]) -> None:
    world = World(LEADER_AND_WORKER)
    for turn in story:
        _play(world, turn)
        before = world.status
        decision = world.settle()
        # Deciding again on what the decision led to decides nothing new.
        again = world.decide()
        assert (again.apply, again.delete, again.status) == ((), (), world.status)
        if is_finished(before):
            assert world.status == before
            assert decision.apply == ()
        else:
            # Nobody is forgotten: a job that waits looks again by itself, or waits for what a watch tells of.
            told_by_watch = world.status.phase == "Preparing" or world.status.reason in TOLD_BY_WATCH
            assert is_finished(world.status) or decision.wake_after_seconds is not None or told_by_watch


@settings(max_examples=40, deadline=None)
@given(st.lists(turns, max_size=25))
def test_conditions_keep_their_order_and_their_time_while_the_answer_stays(story: list[tuple[str, Any, Any]]) -> None:
    world = World(LEADER_AND_WORKER)
    for turn in story:
        before = {condition.type: condition for condition in world.status.conditions}
        _play(world, turn)
        world.settle()
        after = world.status.conditions
        order = ["Accepted", "Prepared", "Running", "Complete", "Failed"]
        assert [condition.type for condition in after] == [kind for kind in order if kind in {c.type for c in after}]
        for condition in after:
            known = before.get(condition.type)
            if known is not None and known.status is condition.status:
                assert known.last_transition_time == condition.last_transition_time


@settings(max_examples=40, deadline=None)
@given(st.lists(turns, max_size=25))
def test_a_failed_job_holds_no_node(story: list[tuple[str, Any, Any]]) -> None:
    world = World(LEADER_AND_WORKER)
    for turn in story:
        _play(world, turn)
        world.settle()
        if world.status.phase == "Failed":
            for job in world.jobs(TRAIN):
                failed = any(
                    c["type"] in {"Failed", "FailureTarget"} for c in job.get("status", {}).get("conditions", ())
                )
                done = any(c["type"] == "Complete" for c in job.get("status", {}).get("conditions", ()))
                leaving = job["metadata"].get("deletionTimestamp") is not None
                pods = [pod["status"] for pod in world.owned_by(job)]
                own_failure = any(pod["phase"] == "Failed" or pod.get("conditions") for pod in pods)
                assert failed or done or leaving or own_failure
