"""What is worked out for a whole run before anything is held: its steps, what is noted of it, what is refused."""

import re
from typing import Any

import pytest

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.planner.memory import GIB
from finetune_trainer.planner.plan import Steps, make_plan, plan_steps
from tests.unit.trainer.planner.runs import H100_BYTES, SHAPE_1B, SHAPE_8B, SHAPE_70B, spec

STEPS: dict[str, tuple[dict[str, dict[str, Any]], int, Steps]] = {
    "the recipe's global batch is 512 and a short last one counts": ({}, 1025, Steps(3, 9, 4)),
    "fewer sequences than one global batch are one step": ({}, 5, Steps(1, 3, 1)),
    "an epoch ends at maxStepsPerEpoch": ({"training": {"maxStepsPerEpoch": 2}}, 10_000, Steps(2, 6, 3)),
    "a long run warms up as long as it was told to": ({"training": {"epochs": 100}}, 5_120, Steps(10, 1000, 100)),
    "a run of one step does not warm up": ({"training": {"epochs": 1}}, 1, Steps(1, 1, 0)),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_counted(case: str) -> None:
    groups, num_sequences, expected = STEPS[case]
    assert plan_steps(spec(**groups), num_sequences) == expected


def test_a_training_that_does_not_fit_is_refused_with_changes_that_do() -> None:
    too_large = spec(compute={"nodes": 1, "gpusPerNode": 1}, training={"activationCheckpointing": False})
    with pytest.raises(TrainerError) as error:
        make_plan(SHAPE_8B, too_large, 1000, 40 * GIB)
    assert error.value.reason is Reason.WILL_NOT_FIT
    assert "each GPU, which has 40.0 GiB" in error.value.message
    assert "activations" in error.value.message
    assert "It fits with training.activationCheckpointing: true" in error.value.message


def test_where_the_memory_is_not_known_the_estimate_is_only_reported() -> None:
    plan = make_plan(SHAPE_70B, spec(compute={"nodes": 1, "gpusPerNode": 1}), 1000, None)
    assert plan.memory.total > H100_BYTES


def test_what_was_decided_for_the_user_is_noted() -> None:
    notes = make_plan(SHAPE_8B, spec(), 1025, None).notes
    assert notes == (
        "warm-up is 4 steps, half of the run, instead of 100",
        "sharding is hybrid: the GPUs' memory is not known, 24 GiB assumed",
    )


def test_a_profile_of_steps_that_the_run_does_not_have_is_noted() -> None:
    notes = make_plan(SHAPE_8B, spec(training={"profile": {"firstStep": 10}}), 1025, 80 * GIB).notes
    assert "nothing is profiled: the run has 9 steps, training.profile.firstStep is 10" in notes
    assert not make_plan(SHAPE_8B, spec(training={"profile": {"firstStep": 9}}), 1025, 80 * GIB).notes[1:]


CANNOT_BE: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "a rank larger than a layer": (
        {"lora": {"rank": 513}},
        "lora.rank 513 is larger than k_proj, a layer of 2048 x 512: an adapter of rank 512 changes all of it",
    ),
}


@pytest.mark.parametrize("case", CANNOT_BE)
def test_what_no_gpu_can_do_is_refused_before_one_is_held(case: str) -> None:
    groups, message = CANNOT_BE[case]
    with pytest.raises(TrainerError, match=re.escape(message)) as error:
        make_plan(SHAPE_1B, spec(**groups), 1000, H100_BYTES)
    assert error.value.reason is Reason.INVALID_SPEC


def test_a_rank_as_large_as_the_smallest_layer_is_taken() -> None:
    make_plan(SHAPE_1B, spec(lora={"rank": 512}), 1000, H100_BYTES)
