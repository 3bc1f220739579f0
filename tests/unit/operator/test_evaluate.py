"""The last stage: what was trained is scored and exported before the job is called done."""

import pytest

from finetune_operator.build.evaluate import build_evaluate_job
from tests.factories import make_job_plan
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import EVALUATE, TRAIN, TWO_NODES, Body, World

EVALUATED_SPEC: Body = TWO_NODES | {"evaluation": {"enabled": True}}
FINDINGS = "functionAccuracy 0.100 -> 0.900"
GATE_NOT_MET = objects.EVALUATED_MESSAGE | {
    "reason": "GateNotMet",
    "message": "the gate is not met: functionAccuracy >= 0.95",
    "evaluated": objects.EVALUATION | {"gateMet": False},
}


def _trained(spec: Body = EVALUATED_SPEC, held_out: int = 2) -> World:
    """Play on until the gang has trained to the end."""
    world = World(spec)
    world.prepared_message = objects.held_out(held_out)
    world.until_running()
    world.advance(600)
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    return world


def _ended(message: Body, condition: str = "Complete", exit_code: int = 0) -> World:
    world = _trained()
    world.set_pods(EVALUATE, objects.ended(message, exit_code=exit_code))
    world.finish_jobs(EVALUATE, condition)
    world.settle()
    return world


def test_a_trained_job_is_evaluated_by_one_pod_before_it_is_done() -> None:
    world = _trained()
    assert world.names("Job")[-2:] == ["calls-evaluate", "calls-prepare"]
    assert world.status.phase == "Evaluating"
    assert world.condition("Running")[:2] == ("False", "Trained")
    assert world.condition("Evaluated")[:2] == ("False", "Evaluating")
    assert [condition.type for condition in world.status.conditions if condition.type == "Complete"] == []
    assert world.status.result is not None
    assert world.status.attempts[0].reason == "Succeeded"
    assert world.status.completion_time is None


def test_what_was_measured_is_told_when_it_is_done() -> None:
    world = _ended(objects.EVALUATED_MESSAGE)
    assert world.status.phase == "Succeeded"
    assert world.condition("Evaluated") == ("True", "Evaluated", FINDINGS)
    assert FINDINGS in world.condition("Complete")[2]
    assert "the adapter is in" in world.condition("Complete")[2]
    result = world.status.result
    assert result is not None
    assert result.evaluation is not None
    assert result.evaluation.tuned.function_accuracy is not None
    assert result.evaluation.tuned.function_accuracy.value == 0.9
    assert result.export is not None
    assert world.status.completion_time is not None


def test_a_job_whose_gate_is_not_met_fails_keeps_its_adapter_and_tells_what_was_measured() -> None:
    world = _ended(GATE_NOT_MET, "Failed", exit_code=1)
    assert (world.status.phase, world.status.reason) == ("Failed", "GateNotMet")
    assert "functionAccuracy >= 0.95" in world.condition("Failed")[2]
    assert world.condition("Running")[1] == "Trained"
    result = world.status.result
    assert result is not None
    assert result.adapter_path
    assert result.evaluation is not None
    assert not result.evaluation.gate_met
    assert world.status.restarts == 0


def test_an_evaluation_that_breaks_off_is_tried_again_and_nothing_is_trained_again() -> None:
    world = _trained()
    world.set_pods(EVALUATE, objects.ended(objects.failure_message("Killed"), exit_code=1))
    world.finish_jobs(EVALUATE, "Failed")
    world.settle()
    assert world.status.phase == "Restarting"
    assert "Evaluating starts again at" in world.condition("Evaluated")[2]
    world.advance(11)
    world.settle()
    assert world.status.phase == "Evaluating"
    assert (world.status.restarts, len(world.status.attempts)) == (1, 1)
    assert [failure.reason for failure in world.status.evaluate_failures] == ["Killed"]


def test_a_report_that_went_with_its_pod_is_made_anew() -> None:
    world = _trained()
    world.set_pods(EVALUATE, objects.ended(objects.EVALUATED_MESSAGE))
    world.finish_jobs(EVALUATE, "Complete")
    world.delete("Pod", world.pods(EVALUATE)[0]["metadata"]["name"])
    world.settle()
    world.set_pods(EVALUATE, objects.ended(objects.EVALUATED_MESSAGE))
    world.finish_jobs(EVALUATE, "Complete")
    world.settle()
    assert world.status.phase == "Succeeded"


def test_an_evaluation_that_is_suspended_frees_its_pod_and_begins_again_when_resumed() -> None:
    world = _trained()
    world.set_pods(EVALUATE, objects.running())
    world.suspend(True)
    world.settle()
    assert world.status.phase == "Suspended"
    assert world.pods(EVALUATE) == []
    world.suspend(False)
    world.settle()
    assert world.status.phase == "Evaluating"
    assert len(world.status.attempts) == 1


def test_a_deadline_ends_an_evaluation_too() -> None:
    world = _trained(EVALUATED_SPEC | {"runPolicy": {"activeDeadlineSeconds": 700}})
    world.set_pods(EVALUATE, objects.running())
    world.advance(101)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "DeadlineExceeded")
    assert world.pods(EVALUATE) == []
    assert world.status.result is not None


# What is to be done with a trained adapter, and how many of its rows were held out: whether there is anything to do.
WANTED = {
    "rows are held out": (EVALUATED_SPEC, 2, True),
    "no row is held out": (EVALUATED_SPEC, 0, False),
    "no row is held out, but the model is to be merged": (EVALUATED_SPEC | {"export": {"merged": True}}, 0, True),
    "a gate is set, and prepare left no row for it": (
        TWO_NODES | {"evaluation": {"enabled": True, "gate": {"loss": "<= 1.5"}}},
        0,
        True,
    ),
    "evaluation is off": (TWO_NODES | {"evaluation": {"enabled": False}}, 2, False),
}


@pytest.mark.parametrize("case", WANTED)
def test_an_evaluate_pod_is_made_only_where_there_is_something_to_do(case: str) -> None:
    spec, held_out, wanted = WANTED[case]
    world = _trained(spec, held_out)
    assert bool(world.jobs(EVALUATE)) is wanted
    assert (world.status.phase == "Succeeded") is not wanted


def test_evaluating_takes_one_gpu_of_one_node_whatever_the_training_took() -> None:
    plan = make_job_plan({"compute": {"nodes": 4, "gpusPerNode": 8, "rdma": True, "resources": {"limits": {"cpu": 8}}}})
    pod = build_evaluate_job(plan)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": "8", "nvidia.com/gpu": "1"}
    assert container["args"][0] == "evaluate"
    assert {volume["name"] for volume in pod["volumes"]} == {"job", "scratch", "shared-memory", "shared"}
