"""What a person is told whose GPU ran out of memory."""

from typing import Any

import pytest

from finetune_trainer.architecture import parse_config
from finetune_trainer.contract.spec import Sharding, TrainerSpec
from finetune_trainer.memory_advice import advise
from finetune_trainer.planner.memory import GIB, estimate_memory
from tests.unit.trainer.test_architecture import LLAMA_8B, PUBLISHED

SHAPE_8B, SHAPE_70B = parse_config(LLAMA_8B), parse_config(PUBLISHED["Llama-3.1-70B"][0])
H100, A10 = 80 * GIB, 24 * GIB


def spec_of(training: dict[str, Any], compute: dict[str, Any]) -> TrainerSpec:
    return TrainerSpec.model_validate(
        {
            "model": {"path": "models/large"},
            "datasets": [{"path": "rows.jsonl", "format": "hermes"}],
            "training": {"kernels": "plain", "packing": False} | training,
            "compute": compute,
        }
    )


def advice(
    training: dict[str, Any], compute: dict[str, Any], sharding: str, memory: int, recomputes: bool = True
) -> str:
    return advise(SHAPE_8B, spec_of(training, compute), Sharding(sharding), recomputes, memory)


ONE_GPU, TWO_NODES = {"gpusPerNode": 1}, {"nodes": 2, "gpusPerNode": 8}
LARGE = {"batchSize": 16, "gradientAccumulation": 2}
# What ran out of memory, and words that the advice has and has not.
CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "activations were kept": (
        advice({"batchSize": 4, "gradientAccumulation": 8}, ONE_GPU, "replicate", H100, recomputes=False),
        ["training.activationCheckpointing: true", "training.batchSize: ", "training.maxSequenceLength: "],
        ["compute.sharding"],
    ),
    "activations were computed again already": (
        advice(LARGE, ONE_GPU, "replicate", 40 * GIB),
        ["training.batchSize: 4 and training.gradientAccumulation: 8", "training.maxSequenceLength: 1024"],
        ["activationCheckpointing", "compute.sharding"],
    ),
    "the whole model was on each of many GPUs": (
        advice({"batchSize": 1}, TWO_NODES, "replicate", A10),
        ["compute.sharding: hybrid"],
        ["activationCheckpointing", "training.batchSize"],
    ),
    "the model was spread within each node": (
        advice(LARGE, TWO_NODES, "hybrid", 30 * GIB),
        ["training.batchSize: "],
        ["compute.sharding: hybrid", "activationCheckpointing"],
    ),
    "no single change is enough": (
        advice(LARGE, TWO_NODES, "replicate", 10 * GIB, recomputes=False),
        [
            "training.activationCheckpointing: true and compute.sharding: full and training.batchSize: 1 and "
            "training.gradientAccumulation: 32 and training.maxSequenceLength: 2048"
        ],
        ["; or with"],
    ),
    "nothing that can be changed is enough": (
        advise(SHAPE_70B, spec_of({}, ONE_GPU), Sharding.REPLICATE, True, A10),
        ["No change of the spec makes it fit, says the planner: use GPUs with more memory, or more of them"],
        [],
    ),
}


@pytest.mark.parametrize(("told", "has", "has_not"), CASES.values(), ids=CASES.keys())
def test_only_what_would_help_and_is_not_so_already_is_proposed(told: str, has: list[str], has_not: list[str]) -> None:
    assert [words for words in has if words not in told] == [], told
    assert [words for words in has_not if words in told] == [], told


def test_a_run_that_should_have_fitted_is_to_become_smaller_all_the_same() -> None:
    spec = spec_of({"batchSize": 4, "gradientAccumulation": 8, "activationCheckpointing": True}, ONE_GPU)
    estimate = estimate_memory(SHAPE_8B, spec, Sharding.REPLICATE).total
    assert estimate < H100
    told = advise(SHAPE_8B, spec, Sharding.REPLICATE, True, H100)
    assert told.startswith("The planner says that it fits with training.batchSize: ")
