"""The memory of a GPU that a run takes, beside what was measured and what can be worked out by hand."""

from typing import Any

import pytest
from benchmarks.trainer.shapes import SHAPES

from finetune_trainer.architecture import parse_config
from finetune_trainer.contract.spec import Sharding
from finetune_trainer.planner.memory import GIB, estimate_memory
from finetune_trainer.planner.plan import make_plan
from tests.unit.trainer.planner.runs import H100_BYTES, SHAPE_1B, SHAPE_8B, SHAPE_70B, spec

# GiB of torch.cuda.max_memory_allocated on an H100 (`benchmarks.trainer.step --list planner`, docs/LOG.md), torch 2.11:
# model, batch, tokens of a sequence, rank, kernels or precision, whether activations are computed again. Those in
# narrow formats, and whose feed-forward is computed bit by bit, with `--list narrow-planner` and `--list narrow`.
MEASURED: dict[tuple[str, int, int, int, str, bool], float] = {
    ("llama-3.1-8b", 4, 4096, 64, "fused", True): 23.63,
    ("llama-3.2-3b", 4, 4096, 64, "fused", True): 11.64,
    ("llama-3.2-1b", 4, 8192, 8, "fused", True): 6.11,
    ("llama-3.1-8b", 1, 139264, 64, "fused", True): 64.28,
    ("smollm2-135m", 8, 2048, 64, "fused", False): 6.64,
    ("llama-3.1-8b", 2, 4096, 64, "fp8", False): 49.26,
    ("llama-3.1-8b", 2, 4096, 64, "fp8-fast", False): 43.69,
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


def test_a_base_model_in_nf4_with_its_embeddings_on_the_host_takes_what_was_measured() -> None:
    training = {"batchSize": 2, "maxSequenceLength": 2048, "activationCheckpointing": True}
    one_gpu = spec(
        compute={"nodes": 1, "gpusPerNode": 1},
        lora={"rank": 8, "dropout": 0},
        training=training | {"precision": "nf4", "embeddingOnHost": True},
    )
    memory = estimate_memory(SHAPE_8B, one_gpu, Sharding.REPLICATE)
    assert (memory.total - memory.overhead) / GIB == pytest.approx(6.82, rel=0.02)


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


def test_embeddings_on_the_host_are_no_memory_of_a_gpu_unless_they_are_the_head_too() -> None:
    for shape, size in ((SHAPE_8B, 2 * 128256 * 4096), (SHAPE_1B, 0)):
        totals = [
            estimate_memory(shape, spec(training={"precision": "nf4", "embeddingOnHost": on_host}), Sharding.REPLICATE)
            for on_host in (False, True)
        ]
        assert totals[0].base_weights - totals[1].base_weights == size
    notes = make_plan(SHAPE_1B, spec(training={"precision": "nf4", "embeddingOnHost": True}), 1000, H100_BYTES).notes
    assert "the embeddings stay on the GPU: the head is the same table" in notes
