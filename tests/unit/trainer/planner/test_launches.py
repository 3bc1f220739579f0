"""When a GPU repeats a step's kernels by itself."""

from typing import Any

import pytest
from benchmarks.trainer.shapes import SHAPES

from finetune_trainer.architecture import parse_config
from finetune_trainer.contract.spec import Sharding, TrainerSpec
from finetune_trainer.planner.launches import repeats_passes, takes_longer_to_launch
from finetune_trainer.planner.memory import GIB, estimate_memory

SMALL, LARGE = parse_config(SHAPES["smollm2-135m"]), parse_config(SHAPES["llama-3.1-8b"])
H100_BYTES = 80 * GIB


def spec(device: str = "gpu", **training: Any) -> TrainerSpec:
    """A training of 8 x 2048 tokens."""
    settings = {"batchSize": 8, "maxSequenceLength": 2048, "activationCheckpointing": False} | training
    return TrainerSpec.model_validate(
        {
            "model": {"path": "model"},
            "datasets": [{"path": "rows.jsonl", "format": "hermes"}],
            "training": settings,
            "compute": {"device": device},
        }
    )


# Measured on an H100: the share of a step in which it was busy with kernels that were launched one by one.
@pytest.mark.parametrize(
    ("shape", "num_tokens", "busy_percent"),
    [(SMALL, 8 * 2048, 59), (SMALL, 32 * 2048, 97), (LARGE, 2 * 4096, 97), (LARGE, 2 * 2048, 97)],
    ids=["135M at 8 x 2048", "135M at 32 x 2048", "8B at 2 x 4096", "8B at 2 x 2048"],
)
def test_launching_takes_longer_where_a_gpu_was_seen_to_wait_for_it(
    shape: Any, num_tokens: int, busy_percent: int
) -> None:
    assert takes_longer_to_launch(shape, num_tokens) is (busy_percent < 90)


def test_a_small_model_in_bf16_is_repeated() -> None:
    assert repeats_passes(SMALL, spec(), Sharding.REPLICATE, H100_BYTES)


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "nf4"},
        {"precision": "fp8"},
        {"precision": "fp32"},
        {"kernels": "plain"},
        {"packing": False},
        {"batchSize": 32},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_what_changes_from_pass_to_pass_or_is_slow_itself_is_not_repeated(changed: dict[str, Any]) -> None:
    assert not repeats_passes(SMALL, spec(**changed), Sharding.REPLICATE, H100_BYTES)


def test_a_model_that_is_spread_is_not_repeated() -> None:
    assert not repeats_passes(SMALL, spec(), Sharding.FULL, H100_BYTES)


def test_a_gpu_that_has_no_room_for_activations_twice_repeats_nothing() -> None:
    memory = estimate_memory(SMALL, spec(), Sharding.REPLICATE)
    assert not repeats_passes(SMALL, spec(), Sharding.REPLICATE, memory.total + memory.activations)
    assert repeats_passes(SMALL, spec(), Sharding.REPLICATE, memory.total + memory.activations + memory.workspace)
