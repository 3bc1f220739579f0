"""Steps, sharding and memory, worked out before anything is held."""

import re
from typing import Any

import pytest
from benchmarks.trainer.shapes import SHAPES

from finetune_trainer.architecture import ModelShape, parse_config
from finetune_trainer.contract.spec import Kernels, Precision, Sharding, TrainerSpec
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.planner.fitting import changes_that_fit, resolve_checkpointing, resolve_sharding
from finetune_trainer.planner.formats import resolve_kernels, resolve_precision
from finetune_trainer.planner.memory import GIB, estimate_memory
from finetune_trainer.planner.plan import Steps, make_plan, plan_steps
from tests.unit.trainer.test_architecture import LLAMA_8B, PUBLISHED

H100_BYTES, A10_BYTES = 80 * GIB, 24 * GIB
SHAPE_8B = parse_config(LLAMA_8B)
SHAPE_1B = parse_config(SHAPES["llama-3.2-1b"])
SHAPE_70B = parse_config(PUBLISHED["Llama-3.1-70B"][0])


def spec(**groups: dict[str, Any]) -> TrainerSpec:
    """The recipe of 16 GPUs on two nodes, changed group by group."""
    base: dict[str, Any] = {
        "model": {"huggingFace": {"repository": "meta-llama/Llama-3.1-8B-Instruct"}},
        "datasets": [{"path": "rows.jsonl", "format": "hermes"}],
        "compute": {"nodes": 2, "gpusPerNode": 8},
    }
    for name, group in groups.items():
        base[name] = base.get(name, {}) | group
    return TrainerSpec.model_validate(base)


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


def test_precision_is_bf16_on_gpus_and_fp32_on_cpus_unless_it_was_said() -> None:
    cpu = {"device": "cpu", "gpusPerNode": None}
    assert resolve_precision(spec()) is Precision.BF16
    assert resolve_precision(spec(compute=cpu)) is Precision.FP32
    assert resolve_precision(spec(training={"precision": "fp32"})) is Precision.FP32
    assert resolve_precision(spec(compute=cpu, training={"precision": "bf16"})) is Precision.BF16


# GiB of torch.cuda.max_memory_allocated on an H100 (`benchmarks.trainer.step --list planner`, docs/LOG.md), torch 2.11:
# model, batch, tokens of a sequence, rank, kernels or precision, whether activations are computed again. Those in
# narrow formats, and whose feed-forward is computed bit by bit, with `--list narrow-planner` and `--list narrow`.
MEASURED: dict[tuple[str, int, int, int, str, bool], float] = {
    ("llama-3.1-8b", 4, 4096, 64, "fused", True): 23.63,
    ("llama-3.2-3b", 4, 4096, 64, "fused", True): 11.64,
    ("llama-3.2-1b", 4, 8192, 8, "fused", True): 6.11,
    ("llama-3.1-8b", 1, 139264, 64, "fused", True): 64.28,
    ("smollm2-135m", 8, 2048, 64, "fused", False): 6.64,
    ("llama-3.1-8b", 2, 4096, 64, "fp8", False): 49.09,
    ("llama-3.1-8b", 2, 4096, 64, "fp8-fast", False): 43.10,
    ("llama-3.1-8b", 4, 4096, 64, "fp8-fast", False): 67.42,
    ("llama-3.1-8b", 1, 4096, 16, "fp8-fast", False): 28.46,
    ("llama-3.1-8b", 2, 8192, 64, "fp8-fast", True): 24.42,
    ("llama-3.2-3b", 2, 4096, 64, "fp8-fast", False): 23.02,
    ("qwen-2.5-7b", 2, 4096, 64, "fp8-fast", False): 42.17,
    ("llama-3.1-8b", 2, 4096, 64, "nf4", False): 32.30,
    ("llama-3.1-8b", 1, 8192, 16, "nf4", True): 9.49,
    ("llama-3.2-1b", 2, 4096, 16, "nf4", False): 8.24,
    ("mistral-7b", 2, 4096, 64, "nf4", False): 30.85,
    ("qwen-2.5-7b", 1, 4096, 64, "nf4", True): 9.83,
    ("llama-3.1-8b", 2, 4096, 64, "fused", False): 42.10,
    ("llama-3.1-8b", 1, 2048, 8, "fused", False): 22.01,
    ("llama-3.1-8b", 2, 2048, 8, "fused", True): 17.38,
    ("llama-3.1-8b", 1, 4096, 64, "fused", False): 30.31,
    ("llama-3.1-8b", 2, 4096, 16, "fused", False): 39.94,
    ("llama-3.1-8b", 3, 4096, 64, "fused", False): 54.15,
    ("llama-3.1-8b", 2, 4096, 64, "plain", True): 21.56,
    ("llama-3.1-8b", 1, 2048, 16, "plain", False): 28.34,
    ("llama-3.2-3b", 2, 4096, 64, "fused", False): 21.88,
    ("llama-3.2-1b", 2, 4096, 64, "fused", False): 10.21,
    ("llama-3.2-1b", 8, 4096, 64, "fused", False): 30.45,
    ("llama-3.2-1b", 2, 4096, 64, "plain", False): 16.89,
    ("qwen-2.5-7b", 2, 4096, 64, "fused", False): 41.13,
}


@pytest.mark.parametrize("measured", MEASURED, ids=str)
def test_the_estimate_is_within_8_percent_of_what_was_measured_and_the_overhead_comes_on_top(
    measured: tuple[str, int, int, int, str, bool],
) -> None:
    model, batch, length, rank, kernels, recomputes = measured
    training = {"batchSize": batch, "maxSequenceLength": length, "activationCheckpointing": recomputes}
    one_gpu = spec(
        compute={"nodes": 1, "gpusPerNode": 1},
        lora={"rank": rank, "dropout": 0},
        training=training | {"kernels" if kernels in ("fused", "plain") else "precision": kernels},
    )
    memory = estimate_memory(parse_config(SHAPES[model]), one_gpu, Sharding.REPLICATE)
    assert (memory.total - memory.overhead) / GIB == pytest.approx(MEASURED[measured], rel=0.08)
    assert memory.total / GIB > MEASURED[measured] + 1.0


def test_a_base_model_that_is_spread_takes_what_was_measured() -> None:
    two_gpus = spec(compute={"nodes": 1, "gpusPerNode": 2}, lora={"dropout": 0}, training={"kernels": "plain"})
    memory = estimate_memory(SHAPE_8B, two_gpus, Sharding.FULL)
    assert (memory.total - memory.overhead) / GIB == pytest.approx(16.8, rel=0.08)


def test_terms_that_can_be_worked_out_by_hand_are_exact() -> None:
    memory = estimate_memory(SHAPE_8B, spec(training={"kernels": "plain"}), Sharding.FULL)
    assert memory.base_weights == 8_030_261_248 * 2 // 16
    assert memory.adapter == memory.gradients == 167_772_160 * 4
    assert memory.optimizer == 167_772_160 * 8
    # embeddings and head of 128256 x 4096 each, the last norm, and two layers of 218,112,000 parameters
    assert memory.gathered_weights == 2 * (2 * 128256 * 4096 + 4096 + 2 * 218_112_000)


def test_less_is_needed_with_shorter_sequences_smaller_batches_and_more_shards() -> None:
    def total(sharding: Sharding = Sharding.REPLICATE, **training: Any) -> int:
        return estimate_memory(SHAPE_70B, spec(training=training), sharding).total

    assert total(maxSequenceLength=1024) < total(maxSequenceLength=4096) < total(activationCheckpointing=False)
    assert total(batchSize=1) < total(batchSize=2)
    assert total(Sharding.FULL) < total(Sharding.HYBRID) < total(Sharding.REPLICATE)


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


def test_a_training_that_does_not_fit_is_refused_with_changes_that_do() -> None:
    too_large = spec(compute={"nodes": 1, "gpusPerNode": 1}, training={"activationCheckpointing": False})
    with pytest.raises(TrainerError) as error:
        make_plan(SHAPE_8B, too_large, 1000, 40 * GIB)
    assert error.value.reason is Reason.WILL_NOT_FIT
    assert "each GPU, which has 40.0 GiB" in error.value.message
    assert "activations" in error.value.message
    assert "It fits with training.activationCheckpointing: true" in error.value.message


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


KERNELS: dict[str, tuple[dict[str, dict[str, Any]], Kernels]] = {
    "where nothing was said, bf16 on GPUs is fused": ({}, Kernels.FUSED),
    "plain when it was said": ({"training": {"kernels": "plain"}}, Kernels.PLAIN),
    "auto: bf16 on GPUs is fused": ({"training": {"kernels": "auto"}}, Kernels.FUSED),
    "auto: also where the model is spread": (
        {"training": {"kernels": "auto"}, "compute": {"sharding": "full"}},
        Kernels.FUSED,
    ),
    "auto: fp32 is plain": ({"training": {"kernels": "auto", "precision": "fp32"}}, Kernels.PLAIN),
    "auto: a CPU is plain": (
        {"compute": {"device": "cpu", "gpusPerNode": None}, "training": {"kernels": "auto"}},
        Kernels.PLAIN,
    ),
    "but fused when it was said": (
        {"compute": {"device": "cpu", "gpusPerNode": None}, "training": {"kernels": "fused"}},
        Kernels.FUSED,
    ),
}


@pytest.mark.parametrize("case", KERNELS)
def test_kernels_are_fused_where_they_can_be(case: str) -> None:
    groups, expected = KERNELS[case]
    assert resolve_kernels(spec(**groups)) is expected


def test_fused_kernels_that_cannot_be_had_are_noted() -> None:
    plan = make_plan(SHAPE_8B, spec(training={"kernels": "fused", "precision": "fp32"}), 1025, H100_BYTES)
    assert plan.kernels is Kernels.PLAIN
    assert "kernels are plain: fused ones take bf16 on a GPU, this is fp32" in plan.notes


def test_narrow_formats_take_fused_kernels_and_any_sharding() -> None:
    for precision in ("fp8", "nf4"):
        two_nodes = spec(training={"precision": precision})
        assert resolve_sharding(SHAPE_70B, two_nodes, A10_BYTES) is not Sharding.REPLICATE
        assert resolve_kernels(two_nodes) is Kernels.FUSED
        on_cpu = spec(training={"precision": precision}, compute={"device": "cpu", "gpusPerNode": None})
        assert resolve_kernels(on_cpu) is Kernels.FUSED


def test_a_base_model_that_is_spread_with_fused_kernels_takes_its_share_and_two_layers() -> None:
    # By hand, Llama 3.1 8B at rank 64 in bf16: 32 layers in four buffers of [outputs + p, inputs + p] numbers, where p
    # is 192, 64, 128 and 64 columns of adapters; embeddings, head and norms stay whole.
    buffers = 6336 * 4288 + 4160 * 4160 + 28800 * 4224 + 4160 * 14400
    linears = 6144 * 4096 + 4096 * 4096 + 28672 * 4096 + 4096 * 14336
    fused = spec(training={"kernels": "fused"}, compute={"nodes": 1, "gpusPerNode": 4})
    estimate = estimate_memory(SHAPE_8B, fused, Sharding.FULL)
    assert estimate.base_weights == 2 * (32 * linears // 4 + 2 * 128256 * 4096 + 65 * 4096)
    assert estimate.gathered_weights == 2 * 2 * buffers
    assert estimate.adapter == 4 * 167_772_160 + 2 * 32 * (buffers - linears) // 4
    assert estimate.total < estimate_memory(SHAPE_8B, fused, Sharding.REPLICATE).total - 9 * GIB


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


def test_embeddings_on_the_host_are_no_memory_of_a_gpu_unless_they_are_the_head_too() -> None:
    for shape, size in ((SHAPE_8B, 2 * 128256 * 4096), (SHAPE_1B, 0)):
        totals = [
            estimate_memory(shape, spec(training={"precision": "nf4", "embeddingOnHost": on_host}), Sharding.REPLICATE)
            for on_host in (False, True)
        ]
        assert totals[0].base_weights - totals[1].base_weights == size
    notes = make_plan(SHAPE_1B, spec(training={"precision": "nf4", "embeddingOnHost": True}), 1000, H100_BYTES).notes
    assert "the embeddings stay on the GPU: the head is the same table" in notes


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
