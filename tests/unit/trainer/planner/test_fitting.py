"""How a run is made to fit: sharding, computing activations again, and the changes that are proposed."""

from typing import Any

import pytest

from finetune_trainer.architecture import ModelShape
from finetune_trainer.contract.spec import Sharding
from finetune_trainer.errors import TrainerError
from finetune_trainer.planner.fitting import changes_that_fit, resolve_checkpointing, resolve_sharding
from finetune_trainer.planner.memory import GIB
from finetune_trainer.planner.plan import make_plan
from tests.unit.trainer.planner.runs import A10_BYTES, H100_BYTES, SHAPE_8B, SHAPE_70B, spec

SHARDINGS: dict[str, tuple[ModelShape, dict[str, Any], int | None, Sharding]] = {
    "8B on an H100 is replicated": (SHAPE_8B, {}, H100_BYTES, Sharding.REPLICATE),
    "8B on an A10 is spread within a node": (SHAPE_8B, {}, A10_BYTES, Sharding.HYBRID),
    "70B on H100s is spread within a node": (SHAPE_70B, {}, H100_BYTES, Sharding.HYBRID),
    "70B on 2 x 2 H100s is spread over all": (SHAPE_70B, {"gpusPerNode": 2}, H100_BYTES, Sharding.FULL),
    "within one node what does not fit is spread over all of it": (SHAPE_70B, {"nodes": 1}, H100_BYTES, Sharding.FULL),
    "GPUs of unknown memory are taken for small ones": (SHAPE_8B, {}, None, Sharding.HYBRID),
    "one process has nothing to spread over": (
        SHAPE_70B,
        {"nodes": 1, "gpusPerNode": 1},
        A10_BYTES,
        Sharding.REPLICATE,
    ),
    "what was said is done": (SHAPE_8B, {"sharding": "full"}, H100_BYTES, Sharding.FULL),
}


@pytest.mark.parametrize("case", SHARDINGS)
def test_the_sharding_with_the_least_communication_that_fits_is_taken(case: str) -> None:
    shape, compute, gpu_memory_bytes, expected = SHARDINGS[case]
    assert resolve_sharding(shape, spec(compute=compute), gpu_memory_bytes) is expected


def test_every_change_that_is_proposed_does_fit() -> None:
    plain = {"kernels": "plain"}
    too_large = spec(compute={"nodes": 1, "gpusPerNode": 2, "sharding": "replicate"}, training=plain | {"batchSize": 8})
    assert changes_that_fit(SHAPE_8B, too_large, A10_BYTES) == [
        "training.batchSize: 2 and gradientAccumulation: 64 with activation checkpointing and sharding auto",
        "training.maxSequenceLength: 2048 and batchSize: 1 with activation checkpointing and sharding auto",
    ]
    changed = plain | {"batchSize": 2, "gradientAccumulation": 64}
    proposed = spec(compute={"nodes": 1, "gpusPerNode": 2}, training=changed)
    assert proposed.global_batch == too_large.global_batch
    make_plan(SHAPE_8B, proposed, 1000, A10_BYTES)


def test_where_nothing_helps_larger_gpus_are_advised() -> None:
    with pytest.raises(TrainerError, match="use larger GPUs"):
        make_plan(SHAPE_70B, spec(compute={"nodes": 1, "gpusPerNode": 1}), 1000, 2 * GIB)


CHECKPOINTING: dict[str, tuple[dict[str, Any], int | None, bool | None]] = {
    "8B fits an H100 without, fused": ({"kernels": "auto"}, H100_BYTES, False),
    "8B does not fit an H100 without, plain": ({"kernels": "plain"}, H100_BYTES, True),
    "a batch of 8 does not": ({"kernels": "auto", "batchSize": 8}, H100_BYTES, True),
    "8B does not fit 40 GiB without": ({"kernels": "auto"}, 40 * GIB, True),
    "the training decides where the memory is not known": ({}, None, None),
    "what was said is done": ({"activationCheckpointing": True}, H100_BYTES, True),
}


@pytest.mark.parametrize("case", CHECKPOINTING)
def test_activations_are_computed_again_where_they_do_not_fit(case: str) -> None:
    training, memory_bytes, expected = CHECKPOINTING[case]
    one_gpu = spec(compute={"nodes": 1, "gpusPerNode": 1}, training=training)
    assert resolve_checkpointing(SHAPE_8B, one_gpu, Sharding.REPLICATE, memory_bytes) is expected
    assert make_plan(SHAPE_8B, one_gpu, 1025, memory_bytes).activation_checkpointing is expected
