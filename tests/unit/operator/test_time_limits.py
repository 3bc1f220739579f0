"""What the clock alone decides: deadlines, stalls, and when a finished job goes."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.progress import Heard
from tests.factories import merged
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import LEADER_AND_WORKER, PREPARE, TRAIN, World

SILENCE = Heard(answers=False)
NO_REPORT = Heard(answers=True)


def _world(**policy: Any) -> World:
    return World(merged(LEADER_AND_WORKER, {"runPolicy": policy}))


def _step(world: World, step: int) -> None:
    """Play rank 0 that has just done a step."""
    world.heard = objects.heard(step=step, last_step_time=world.now.isoformat(), checkpoint=objects.checkpoint(step))
    world.settle()


# Deadlines.


@pytest.mark.parametrize("stage", ["preparing", "pending", "starting", "running", "restarting"])
def test_a_job_that_is_not_done_in_time_fails_in_whatever_stage_it_is(stage: str) -> None:
    world = _world(activeDeadlineSeconds=3600)
    world.settle()
    if stage == "preparing":
        world.set_pods(PREPARE, objects.running())
    elif stage != "pending":
        world.until_prepared()
    if stage in ("running", "restarting"):
        world.set_pods(TRAIN, objects.running())
        world.settle()
    if stage == "restarting":
        world.delete("Job", "calls-a1-worker")
    world.advance(3599)
    world.settle()
    assert world.status.phase != "Failed"
    world.advance(1)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "DeadlineExceeded")
    assert "activeDeadlineSeconds (3600)" in world.condition("Failed")[2]
    assert world.jobs(TRAIN) == []
    assert world.jobs(PREPARE) == [] or stage not in ("preparing", "pending")


def test_a_job_wakes_for_its_deadline_though_it_waits_for_what_a_watch_tells() -> None:
    world = _world(activeDeadlineSeconds=3600).until_prepared()
    world.set_pods(TRAIN, objects.unschedulable())
    world.advance(100)
    assert world.settle().wake_after_seconds == 3500


def test_the_last_checkpoint_is_told_when_the_time_is_over() -> None:
    world = _world(activeDeadlineSeconds=3600).until_running()
    _step(world, 10)
    world.advance(3600)
    world.settle()
    assert "The checkpoint of step 10 is kept in jobs/team/demo" in world.condition("Failed")[2]


def test_a_training_that_was_done_in_time_has_succeeded_though_it_is_looked_at_later() -> None:
    world = _world(activeDeadlineSeconds=3600).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.advance(4000)
    world.settle()
    assert world.status.phase == "Succeeded"


def test_suspending_stops_the_clock_and_resuming_starts_it_from_zero() -> None:
    world = _world(activeDeadlineSeconds=3600).until_running()
    world.advance(3000)
    world.suspend(True)
    world.settle()
    assert world.status.start_time is None
    world.advance(10_000)
    world.settle()
    assert world.status.phase == "Suspended"
    world.suspend(False)
    world.settle()
    assert world.status.start_time == "2026-11-23T08:36:40Z"
    world.advance(3599)
    world.settle()
    assert world.status.phase == "Starting"
    world.advance(1)
    world.settle()
    assert world.status.reason == "DeadlineExceeded"


def test_a_deadline_that_is_moved_in_mid_run_counts() -> None:
    world = _world(activeDeadlineSeconds=3600).until_running()
    world.advance(3000)
    world.change_spec({"runPolicy": {"activeDeadlineSeconds": 7200}})
    world.advance(1000)
    world.settle()
    assert world.status.phase == "Running"


# Stalls.


def test_a_gang_that_does_no_step_for_too_long_is_stopped_and_starts_anew() -> None:
    world = _world(stallTimeoutSeconds=600).until_running()
    _step(world, 10)
    world.advance(590)
    assert world.settle().wake_after_seconds == 10
    world.advance(9)
    world.settle()
    assert world.status.phase == "Running"
    world.advance(1)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Restarting", "Stalled")
    assert world.jobs(TRAIN) == []
    message = world.status.attempts[0].message
    assert message is not None
    assert message.startswith("No step since 2026-11-23 05:00:00 UTC")
    assert "10/30 steps are done" in message


@pytest.mark.parametrize("heard", [SILENCE, NO_REPORT], ids=["silent", "without a report"])
def test_a_frozen_rank_0_that_was_heard_before_has_stalled(heard: Heard) -> None:
    world = _world(stallTimeoutSeconds=600).until_running()
    _step(world, 10)
    world.heard = heard
    world.advance(600)
    world.settle()
    assert world.status.reason == "Stalled"


def test_a_gang_that_never_begins_has_stalled() -> None:
    world = _world(stallTimeoutSeconds=600).until_running()
    world.heard = NO_REPORT
    world.advance(600)
    world.settle()
    assert world.status.reason == "Stalled"
    assert "no step is done" in (world.status.attempts[0].message or "")


def test_a_gang_whose_rank_0_cannot_be_reached_at_all_is_not_stopped_for_that() -> None:
    world = _world(stallTimeoutSeconds=600).until_running()
    world.heard = SILENCE
    world.advance(6000)
    world.settle()
    assert world.status.phase == "Running"
    assert "port 9464" in world.condition("Running")[2]


def test_an_operator_that_has_just_started_asks_before_it_calls_a_gang_stalled() -> None:
    world = _world(stallTimeoutSeconds=600).until_running()
    _step(world, 10)
    world.advance(6000)
    world.heard = None
    world.settle()
    assert world.status.phase == "Running"
    _step(world, 200)
    assert world.status.phase == "Running"


def test_a_gang_that_waits_for_a_node_has_not_stalled() -> None:
    world = _world(stallTimeoutSeconds=600).until_prepared()
    world.set_pods(TRAIN, objects.unschedulable())
    world.advance(100_000)
    world.settle()
    assert world.status.reason == "Unschedulable"


def test_a_new_attempt_has_the_whole_time_again() -> None:
    world = _world(stallTimeoutSeconds=600).until_running()
    _step(world, 10)
    world.advance(600)
    world.settle()
    world.advance(500)
    world.settle()
    world.set_pods(TRAIN, objects.running())
    world.heard = NO_REPORT
    world.settle()
    world.advance(599)
    world.settle()
    assert world.status.phase == "Running"
    world.advance(1)
    world.settle()
    assert [attempt.reason for attempt in world.status.attempts] == ["Stalled", "Stalled"]


def test_zero_waits_for_ever() -> None:
    world = _world(stallTimeoutSeconds=0).until_running()
    _step(world, 10)
    world.advance(1_000_000)
    world.settle()
    assert world.status.phase == "Running"


# Finished jobs.


def _finished(**policy: Any) -> World:
    world = _world(**policy).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    assert world.status.phase == "Succeeded"
    return world


def test_a_finished_job_goes_when_its_time_is_over_and_its_children_first() -> None:
    world = _finished(ttlSecondsAfterFinished=3600)
    assert world.settle().wake_after_seconds == 3600
    world.advance(3600)
    world.lingers = True
    decision = world.step()
    assert sorted(child.key.name for child in decision.delete) == [
        "calls-a1",
        "calls-a1-leader",
        "calls-a1-worker",
        "calls-prepare",
    ]
    assert not world.step().delete_job
    world.let_go()
    world.step()
    assert world.deleted
    assert world.names("PersistentVolumeClaim") == ["calls-network", "calls-shared"]


def test_a_finished_job_without_a_time_to_live_stays() -> None:
    world = _finished()
    world.advance(100_000_000)
    decision = world.settle()
    assert (decision.delete, world.deleted, decision.wake_after_seconds) == ((), False, None)


def test_a_time_to_live_that_is_given_later_counts() -> None:
    world = _finished()
    world.advance(3600)
    world.change_spec({"runPolicy": {"ttlSecondsAfterFinished": 60}})
    world.settle()
    assert world.deleted


def test_a_job_that_has_just_ended_is_looked_at_once_more_with_no_event_to_wake_it() -> None:
    world = _world(activeDeadlineSeconds=3600, ttlSecondsAfterFinished=60).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    assert world.step().wake_after_seconds == 0
    assert world.status.phase == "Succeeded"
    assert world.step().wake_after_seconds == 60


def test_nothing_of_a_finished_job_changes_while_its_children_go() -> None:
    world = _finished(ttlSecondsAfterFinished=0)
    before = world.status
    world.settle()
    assert world.status == before


# Questions.


def test_the_longer_the_last_step_is_ago_the_later_rank_0_is_asked_again_and_in_time_for_a_stall() -> None:
    world = _world(stallTimeoutSeconds=1000).until_running()
    _step(world, 10)
    stepped_at, waits = world.now, {}
    for still_for_seconds in (20, 400, 600, 900, 995):
        world.now = stepped_at + timedelta(seconds=still_for_seconds)
        waits[still_for_seconds] = world.settle().wake_after_seconds
    assert waits == {20: 10, 400: 100, 600: 150, 900: 100, 995: 5}


def test_without_a_stall_timeout_rank_0_is_asked_every_five_minutes_at_least() -> None:
    world = _world(stallTimeoutSeconds=0).until_running()
    _step(world, 10)
    world.advance(100_000)
    assert world.settle().wake_after_seconds == 300
