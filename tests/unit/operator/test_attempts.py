"""What follows when a training breaks off: how the next attempt comes about, and when there is none."""

import re
from typing import Any

import pytest

from tests.factories import merged
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, TWO_NODES, World, set_job_condition

OOM_KILLED = objects.ended("", exit_code=137, reason="OOMKilled")


def _world(**policy: Any) -> World:
    return World(merged(LEADER_AND_WORKER, {"runPolicy": policy})).until_running()


def _train_until(world: World, step: int, saved: int = 0, resumed_from: int = 0) -> None:
    """Play rank 0: so many steps are done, and the newest checkpoint is of this step."""
    saved_as = objects.checkpoint(saved) if saved else None
    now = world.now.isoformat()
    world.heard = objects.heard(
        step=step, last_step_time=now, checkpoint=saved_as, resumed_from_step=resumed_from, tokens_per_second=10
    )
    world.settle()
    world.heard = None


def _kill_a_worker(world: World) -> None:
    world.pods(TRAIN)[1]["status"] = OOM_KILLED
    set_job_condition(world.jobs(TRAIN)[1], "Failed")
    world.settle()


def _run_next_attempt(world: World, delay_seconds: float) -> None:
    world.advance(delay_seconds)
    world.settle()
    world.set_pods(TRAIN, objects.running())
    world.settle()
    assert world.status.phase == "Running"


def test_a_pod_that_fails_ends_the_attempt_and_the_gang_is_taken_down() -> None:
    world = _world()
    _kill_a_worker(world)
    assert (world.status.phase, world.status.reason) == ("Restarting", "OOMKilled")
    assert world.names("Job") == ["calls-prepare"]
    assert world.names("Service") == []
    (attempt,) = world.status.attempts
    assert (attempt.number, attempt.ended, attempt.reason) == (1, world.now.strftime("%Y-%m-%dT%H:%M:%SZ"), "OOMKilled")
    assert attempt.message is not None
    assert "calls-a1-worker-0-x used more memory than its limit" in attempt.message


def test_the_next_attempt_is_a_fresh_gang_with_names_of_its_own() -> None:
    world = _world()
    _kill_a_worker(world)
    world.advance(10)
    world.settle()
    assert world.names("Job") == ["calls-a2-leader", "calls-a2-worker", "calls-prepare"]
    assert world.names("Service") == ["calls-a2"]
    assert [attempt.number for attempt in world.status.attempts] == [1, 2]
    assert world.status.restarts == 1
    assert world.status.phase == "Starting"


def test_status_says_when_the_next_attempt_starts_and_from_where() -> None:
    world = _world()
    _train_until(world, step=17, saved=10)
    _kill_a_worker(world)
    message = world.condition("Running")[2]
    assert "Attempt 2 starts from the checkpoint of step 10 at 05:00:10 UTC" in message
    assert ("Warning", "OOMKilled", message) in [(event.type.value, event.reason, event.note) for event in world.events]


def test_no_pod_of_the_next_attempt_is_made_before_the_last_one_of_this_is_gone() -> None:
    world = _world()
    world.lingers = True
    _kill_a_worker(world)
    world.advance(60)
    decision = world.settle()
    assert decision.apply == ()
    assert decision.wake_after_seconds == 5
    assert world.status.phase == "Restarting"
    world.let_go()
    world.settle()
    assert world.names("Job") == ["calls-a2-leader", "calls-a2-worker", "calls-prepare"]


def test_a_pod_that_a_dead_node_holds_is_removed_by_force_a_minute_after_it_was_to_go() -> None:
    world = _world()
    world.lingers = True
    silent = [
        {"type": "Ready", "status": "False", "lastTransitionTime": world.now.isoformat()},
        {"type": "ContainersReady", "status": "True", "lastTransitionTime": world.now.isoformat()},
        *objects.disrupted("DeletionByTaintManager")["conditions"],
    ]
    lost = world.pods(TRAIN)[1]
    lost["status"]["conditions"] = silent
    world.step()
    assert world.status.reason == "NodeLost"
    assert world.step().force == ()
    world.advance(59)
    assert world.step().force == ()
    world.advance(1)
    decision = world.decide()
    assert [child.key.name for child in decision.force] == [lost["metadata"]["name"]]


def test_the_delay_doubles_while_no_step_is_saved() -> None:
    world = _world(maxRestarts=10)
    for delay_seconds in (10, 20, 40, 80, 160, 300, 300):
        _kill_a_worker(world)
        decision = world.decide()
        assert decision.wake_after_seconds == delay_seconds
        _run_next_attempt(world, delay_seconds)


def test_steps_that_were_saved_reset_the_delay() -> None:
    world = _world()
    _kill_a_worker(world)
    _run_next_attempt(world, 10)
    _train_until(world, step=12, saved=10)
    _kill_a_worker(world)
    assert world.decide().wake_after_seconds == 10
    _run_next_attempt(world, 10)
    _train_until(world, step=14, saved=10, resumed_from=10)
    _kill_a_worker(world)
    assert world.decide().wake_after_seconds == 20


def test_an_attempt_tells_where_it_began_how_far_it_came_and_what_was_lost() -> None:
    world = _world()
    _train_until(world, step=17, saved=10)
    _kill_a_worker(world)
    _run_next_attempt(world, 10)
    _train_until(world, step=21, saved=20, resumed_from=10)
    first, second = world.status.attempts
    assert (first.resumed_from_step, first.last_step, first.steps_lost) == (0, 17, 7)
    assert (second.resumed_from_step, second.last_step, second.steps_lost) == (10, 21, None)
    assert ("CheckpointLoaded", "Attempt 2 goes on from the checkpoint of step 10.") in [
        (event.reason, event.note) for event in world.events
    ]


def test_the_next_attempt_corrects_what_was_lost_when_the_newest_checkpoint_was_damaged() -> None:
    world = _world()
    _train_until(world, step=17, saved=10)
    _kill_a_worker(world)
    _run_next_attempt(world, 10)
    damage = "checkpoints/00000010: adapter.safetensors has another digest; step 5 is used instead"
    world.heard = objects.heard(
        step=5, resumed_from_step=5, checkpoint=objects.checkpoint(5), damaged_checkpoints=(damage,)
    )
    world.settle()
    assert world.status.attempts[0].steps_lost == 12
    assert world.status.damaged_checkpoints == (damage,)
    told = [(event.type.value, event.note) for event in world.events if event.reason == "CheckpointCorrupt"]
    assert told == [("Warning", damage)]


def test_the_last_word_of_rank_0_tells_the_checkpoint_that_was_written_on_the_way_out() -> None:
    world = _world()
    world.lingers = True
    _train_until(world, step=17, saved=10)
    _kill_a_worker(world)
    assert world.status.attempts[0].steps_lost == 7
    last_word = objects.failure_message("Terminated") | {
        "progress": objects.report(step=18, checkpoint=objects.checkpoint(18)).model_dump(by_alias=True)
    }
    world.pods(TRAIN)[0]["status"] = objects.ended(last_word, exit_code=143)
    world.settle()
    assert world.status.checkpoint is not None
    assert world.status.checkpoint.step == 18
    assert (world.status.attempts[0].last_step, world.status.attempts[0].steps_lost) == (18, 0)
    assert world.status.attempts[0].reason == "OOMKilled"


FATAL = ("Diverged", "OutOfGPUMemory", "DataInvalid", "CheckpointUnusable", "StorageNotWritable")


@pytest.mark.parametrize("reason", FATAL)
def test_what_would_fail_the_same_way_again_is_not_tried_again(reason: str) -> None:
    world = _world()
    _train_until(world, step=17, saved=10)
    world.pods(TRAIN)[1]["status"] = objects.ended(objects.failure_message(reason, "what happened"), exit_code=1)
    set_job_condition(world.jobs(TRAIN)[1], "Failed")
    world.settle()
    assert (world.status.phase, world.status.reason, world.status.restarts) == ("Failed", reason, 0)
    assert "The checkpoint of step 10 is kept in jobs/team/demo/uid/checkpoints" in world.condition("Failed")[2]


def test_a_full_disk_is_tried_again_once() -> None:
    world = _world()
    full = objects.ended(objects.failure_message("StorageFull"), exit_code=1)
    for phase in ("Restarting", "Failed"):
        world.pods(TRAIN)[0]["status"] = full
        set_job_condition(world.jobs(TRAIN)[0], "Failed")
        world.settle()
        assert (world.status.phase, world.status.reason) == (phase, "StorageFull")
        if phase == "Restarting":
            _run_next_attempt(world, 10)
    assert "tried again once" in world.condition("Failed")[2]


def test_a_job_has_failed_when_it_was_restarted_as_often_as_it_may() -> None:
    world = _world(maxRestarts=2)
    for delay_seconds in (10, 20):
        _kill_a_worker(world)
        _run_next_attempt(world, delay_seconds)
    _kill_a_worker(world)
    assert (world.status.phase, world.status.reason, world.status.restarts) == ("Failed", "OOMKilled", 2)
    assert "started anew 2 times, which is what spec.runPolicy.maxRestarts allows" in world.condition("Failed")[2]
    assert [attempt.number for attempt in world.status.attempts] == [1, 2, 3]


def test_no_restart_at_all_can_be_asked_for() -> None:
    world = _world(maxRestarts=0)
    _kill_a_worker(world)
    assert world.status.phase == "Failed"
    assert "started anew never" in world.condition("Failed")[2]


@pytest.mark.parametrize("killed_after", ["made", "told"])
def test_an_operator_that_is_killed_half_way_finds_the_gang_that_it_made(killed_after: str) -> None:
    world = _world()
    _kill_a_worker(world)
    world.advance(10)
    world.step(killed_after)
    made = {key: body["metadata"]["uid"] for key, body in world.objects.items() if key.kind == "Job"}
    world.settle()
    assert {key: body["metadata"]["uid"] for key, body in world.objects.items() if key.kind == "Job"} == made
    assert [attempt.number for attempt in world.status.attempts] == [1, 2]
    assert world.status.restarts == 1


def test_an_operator_that_is_killed_before_it_deletes_a_failed_gang_keeps_the_cause() -> None:
    world = _world()
    world.pods(TRAIN)[1]["status"] = OOM_KILLED
    set_job_condition(world.jobs(TRAIN)[1], "Failed")
    world.step(killed_after="told")
    assert len(world.jobs(TRAIN)) == 2
    world.settle()
    assert world.jobs(TRAIN) == []
    assert [attempt.reason for attempt in world.status.attempts] == ["OOMKilled"]


GONE = {
    "a Job": ("Job", "calls-a1-worker", "TrainJobDeleted", "Job calls-a1-worker was deleted while it trained."),
    "a pod, by force": ("Pod", "calls-a1-worker-0-x", "PodDeleted", "Job calls-a1-worker has 0 of its 1 pods left"),
}


@pytest.mark.parametrize("case", GONE)
def test_what_somebody_deletes_in_mid_run_is_made_again_from_the_checkpoint(case: str) -> None:
    kind, name, reason, words = GONE[case]
    world = _world()
    _train_until(world, step=17, saved=10)
    world.delete(kind, name)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", reason)
    assert words in world.condition("Running")[2]
    assert "from the checkpoint of step 10" in world.condition("Running")[2]
    _run_next_attempt(world, 10)
    assert world.status.restarts == 1


def test_a_gang_that_a_queue_takes_its_place_from_waits_and_has_not_failed() -> None:
    world = _world()
    for job in world.jobs(TRAIN):
        job["spec"]["suspend"] = True
        for pod in world.owned_by(job):
            world.delete("Pod", pod["metadata"]["name"])
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Pending", "Queued")
    assert [attempt.ended for attempt in world.status.attempts] == [None]
    for job in world.jobs(TRAIN):
        job["spec"]["suspend"] = False
    world.set_pods(TRAIN, objects.running())
    world.settle()
    assert (world.status.phase, world.status.restarts) == ("Running", 0)


PREPARE_DISASTERS = {
    "a kill for memory": (OOM_KILLED, "OOMKilled"),
    "an eviction": ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, "Evicted"),
}


@pytest.mark.parametrize("case", PREPARE_DISASTERS)
def test_preparing_that_breaks_off_is_tried_again(case: str) -> None:
    status, reason = PREPARE_DISASTERS[case]
    world = World(TWO_NODES)
    world.settle()
    world.set_pods(PREPARE, status)
    world.finish_jobs(PREPARE, "Failed")
    world.settle()
    assert (world.status.phase, world.status.reason, world.status.restarts) == ("Restarting", reason, 1)
    assert re.search(r"Preparing starts again at 05:00:10 UTC", world.condition("Prepared")[2])
    assert world.jobs(PREPARE) == []
    assert world.decide().wake_after_seconds == 10
    world.advance(10)
    world.settle()
    assert world.names("Job") == ["calls-prepare"]
    assert [failure.reason for failure in world.status.prepare_failures] == [reason]
    assert world.status.phase == "Preparing"


def test_preparing_that_breaks_off_again_and_again_fails_the_job() -> None:
    world = World(merged(TWO_NODES, {"runPolicy": {"maxRestarts": 1}}))
    world.settle()
    for phase in ("Restarting", "Failed"):
        world.set_pods(PREPARE, OOM_KILLED)
        world.finish_jobs(PREPARE, "Failed")
        world.settle()
        assert world.status.phase == phase
        world.advance(10)
        world.settle()
    assert world.condition("Failed")[1] == "OOMKilled"
