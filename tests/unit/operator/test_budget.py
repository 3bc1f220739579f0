"""A budget: a job that has spent it is suspended after a checkpoint, and goes on with a higher one."""

from dataclasses import replace

from finetune_operator.pricing import parse_pricing
from tests.factories import SETTINGS
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import TRAIN, World, set_job_condition

# 16 GPUs at 3.60 an hour cost 0.016 a second; 10 are spent after 625 seconds.
PRICED = replace(SETTINGS, pricing=parse_pricing('{"currency": "USD", "gpuHour": {"default": "3.6"}}'))
ON_SIXTEEN_GPUS = {"compute": {"nodes": 2, "gpusPerNode": 8}, "runPolicy": {"budget": 10}}


def _training() -> World:
    world = World(ON_SIXTEEN_GPUS)
    world.settings = PRICED
    world.until_running()
    world.heard = objects.heard(step=17, checkpoint=objects.checkpoint(10))
    world.settle()
    world.heard = None
    return world


def _spent() -> World:
    world = _training()
    world.advance(625)
    world.settle()
    return world


def test_a_job_within_its_budget_trains_and_is_looked_at_when_it_will_be_spent() -> None:
    world = _training()
    world.advance(620)
    decision = world.settle()
    assert world.status.phase == "Running"
    assert decision.wake_after_seconds == 5


def test_a_job_that_has_spent_its_budget_is_told_to_stop_and_gets_its_grace_period() -> None:
    world = _training()
    world.advance(625)
    world.lingers = True
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Suspending", "BudgetSpent")
    assert all("deletionTimestamp" in pod["metadata"] for pod in world.pods(TRAIN))
    assert world.status.attempts[0].reason == "Suspended"


def test_what_to_do_is_told_with_where_it_goes_on() -> None:
    world = _spent()
    status, reason, message = world.condition("Suspended")
    assert (world.status.phase, status, reason) == ("Suspended", "True", "BudgetSpent")
    assert message.startswith("The budget of 10 USD (spec.runPolicy.budget) is spent; status.accounting.cost says")
    assert message.endswith("Raise spec.runPolicy.budget to go on from the checkpoint of step 10.")
    assert world.events[-1].type == "Warning"


def test_the_spec_is_left_to_the_user() -> None:
    assert "suspend" not in _spent().body["spec"]


def test_a_suspended_job_stays_suspended_and_nothing_is_written_while_time_goes_by() -> None:
    world = _spent()
    world.settle()
    for _ in range(3):
        before = world.status
        world.advance(86400)
        world.settle()
        assert world.status == before


def test_a_higher_budget_lets_it_go_on_as_a_new_attempt_that_is_no_restart() -> None:
    world = _spent()
    world.change_spec({"runPolicy": {"budget": "20.50"}})
    world.settle()
    assert (world.status.phase, world.status.restarts) == ("Starting", 0)
    assert world.condition("Suspended")[1:] == ("Resumed", "The budget allows it: the job goes on.")
    assert world.status.attempts[-1].number == 2


def test_a_budget_that_is_still_spent_changes_the_words_alone() -> None:
    world = _spent()
    world.change_spec({"runPolicy": {"budget": "9.50"}})
    world.settle()
    assert world.status.phase == "Suspended"
    assert "9.50 USD" in world.condition("Suspended")[2]


def test_a_budget_that_is_taken_out_lets_it_go_on() -> None:
    world = _spent()
    world.change_spec({"runPolicy": {"budget": None}})
    world.settle()
    assert world.status.phase == "Starting"


def test_a_budget_that_is_lowered_below_what_was_spent_suspends_at_once() -> None:
    world = _training()
    world.advance(100)
    world.change_spec({"runPolicy": {"budget": 1}})
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Suspended", "BudgetSpent")


def test_what_the_user_suspended_is_the_users() -> None:
    world = _training()
    world.suspend(True)
    world.settle()
    world.advance(86400)
    world.settle()
    assert world.status.reason == "Suspended"


def test_a_gang_that_trained_to_the_end_as_its_budget_was_spent_has_succeeded() -> None:
    world = _training()
    world.advance(700)
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    assert world.status.phase == "Succeeded"


def test_a_failure_that_came_first_is_told_as_what_it_was() -> None:
    world = _training()
    world.pods(TRAIN)[1]["status"] = objects.ended("", exit_code=137, reason="OOMKilled")
    set_job_condition(world.jobs(TRAIN)[0], "Failed")
    world.advance(700)
    world.settle()
    assert [attempt.reason for attempt in world.status.attempts] == ["OOMKilled"]
    assert world.status.reason == "BudgetSpent"


def test_a_trained_model_is_evaluated_although_the_budget_is_spent() -> None:
    world = World(ON_SIXTEEN_GPUS | {"evaluation": {"enabled": True}})
    world.settings, world.prepared_message = PRICED, objects.held_out(2)
    world.until_running()
    world.advance(700)
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    assert (world.status.phase, world.names("Job")[-2:]) == ("Evaluating", ["calls-evaluate", "calls-prepare"])
    assert "BudgetSpent" not in {event.reason for event in world.events}


def test_a_budget_where_nobody_named_prices_keeps_the_job_from_being_begun() -> None:
    world = World(ON_SIXTEEN_GPUS)
    world.settle()
    assert world.objects == {}
    assert (world.status.phase, world.status.reason) == ("Suspended", "PricesMissing")
    assert "Have `pricing` set in the operator's chart" in world.condition("Suspended")[2]
    world.settings = PRICED
    world.settle()
    assert world.names("Job") == ["calls-prepare"]


def test_prices_that_are_taken_away_leave_a_job_those_that_it_has() -> None:
    world = _training()
    world.settings = SETTINGS
    world.advance(620)
    world.settle()
    assert world.status.phase == "Running"
    world.advance(5)
    world.settle()
    assert world.status.reason == "BudgetSpent"
