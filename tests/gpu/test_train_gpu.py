"""The training on real GPUs: attention of packed documents in bf16, NCCL, and what the exporter tells of a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch._dynamo.utils import counters

from finetune_trainer.architecture import read_shape
from finetune_trainer.contract import series
from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason, TrainedReport
from finetune_trainer.data.batch import Batch, make_batch
from finetune_trainer.failures import explain
from finetune_trainer.launch import advise_on_memory, train
from finetune_trainer.metrics import NodeCollector
from finetune_trainer.model import CausalDecoder, build_model, read_weights
from finetune_trainer.sharding import fill_model
from tests.tiny_run import MODEL_PATH, prepare_tiny_job, random_sequence, write_tiny_model

NUM_GPUS = torch.cuda.device_count()
# FlexAttention takes heads of 16 features and more.
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype, device: torch.device) -> CausalDecoder:
    shape = read_shape(directory)
    model = build_model(shape, dtype, 256, checkpoint_activations=False)
    fill_model(model, read_weights(directory, shape), device)
    model.fill_rotary_cache(device)
    return model


def packed(*document_lengths: int, seed: int = 0, length: int = 128) -> Batch:
    return make_batch([random_sequence(seed, document_lengths)], length_multiple=length)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
def test_packed_documents_have_the_loss_on_a_gpu_that_they_have_on_a_cpu(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    write_tiny_model(tmp_path, **SIZES)
    batch = packed(100, 37, 90)
    with torch.no_grad():
        expected = load(tmp_path, torch.float32, CPU)(batch)
        ours = load(tmp_path, dtype, GPU)(batch.to(GPU))
    assert ours.item() == pytest.approx(expected.item(), rel=tolerance)


def test_attention_is_compiled_once_whatever_the_documents_of_a_batch(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, **SIZES)
    model = load(tmp_path, torch.bfloat16, GPU)
    num_graphs = []
    for seed in range(12):
        batch = packed(20 + 7 * seed, 30, *([5] * seed), seed=seed, length=256)
        with torch.no_grad():
            model(batch.to(GPU))
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert num_graphs[-1] == num_graphs[1]


def tiny_gpu_job(
    root: Path, gpus: int, sharding: str, kernels: str, precision: str = "bf16"
) -> tuple[TrainerJob, JobPaths]:
    write_tiny_model(root / "shared" / MODEL_PATH, **SIZES)
    training: dict[str, Any] = {
        "epochs": 3,
        "batchSize": 1,
        "gradientAccumulation": 4 * NUM_GPUS // gpus,
        "maxSequenceLength": 32,
        "optimizer": {"learningRate": 0.01},
        "schedule": {"warmupSteps": 1},
    }
    job, paths = prepare_tiny_job(
        root, training=training, compute={"device": "gpu", "gpusPerNode": gpus, "sharding": sharding}
    )
    plan = json.loads(paths.prepared.read_text())
    paths.prepared.write_text(json.dumps(plan | {"precision": precision, "kernels": kernels}))
    return job, paths


def run(
    root: Path, gpus: int, sharding: str, kernels: str = "plain", precision: str = "bf16"
) -> tuple[TrainedReport, list[float]]:
    job, paths = tiny_gpu_job(root, gpus, sharding, kernels, precision)
    report, _ = train(job, paths, {"FINETUNE_METRICS_PORT": "0"})
    return report, [json.loads(line)["loss"] for line in (paths.logs / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of one GPU."""
    return run(tmp_path_factory.mktemp("one"), 1, "replicate")[1]


@pytest.mark.parametrize("sharding", ["replicate", "full", "hybrid"])
def test_all_gpus_have_the_loss_curve_of_one(tmp_path: Path, one_gpu: list[float], sharding: str) -> None:
    report, losses = run(tmp_path, NUM_GPUS, sharding)
    # The same numbers are added up in another order, in bf16.
    assert losses == pytest.approx(one_gpu, rel=1e-2)
    assert report.steps == len(losses)
    assert report.final_loss < report.first_loss


def test_the_fused_step_has_the_loss_curve_of_the_plain_one(tmp_path: Path, one_gpu: list[float]) -> None:
    _, losses = run(tmp_path, NUM_GPUS, "replicate", "fused")
    assert losses == pytest.approx(one_gpu, rel=1e-2)


# The model is random and tiny, so that rounding its weights changes it more than it would a trained one.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp8", 0.03), ("fp8-fast", 0.05), ("nf4", 0.1)])
def test_a_narrow_base_model_learns_as_the_whole_one(
    tmp_path: Path, one_gpu: list[float], precision: str, tolerance: float
) -> None:
    report, losses = run(tmp_path, NUM_GPUS, "replicate", "fused", precision)
    assert losses == pytest.approx(one_gpu, rel=tolerance)
    assert report.final_loss < report.first_loss


def test_the_exporter_tells_the_memory_that_tensors_took() -> None:
    size_bytes = 1 << 28
    registry = CollectorRegistry()
    registry.register(NodeCollector(0, True, lambda: {0: torch.cuda.max_memory_allocated()}))
    tensor = torch.zeros(size_bytes, dtype=torch.uint8, device=GPU)
    labels = {"gpu": "0"}
    assert (registry.get_sample_value(series.GPU_MEMORY_USED_BYTES, labels) or 0) >= tensor.numel()
    assert (registry.get_sample_value(series.GPU_MEMORY_PEAK_BYTES, labels) or 0) >= tensor.numel()
    assert 0 <= (registry.get_sample_value(series.GPU_UTILIZATION_RATIO, labels) or 0) <= 1


def test_a_full_gpu_is_explained_with_what_to_change(tmp_path: Path) -> None:
    job, paths = tiny_gpu_job(tmp_path, 1, "replicate", "plain")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device=GPU)
    failure = explain(caught.value, lambda: advise_on_memory(job, paths, GPU))
    assert failure.reason is Reason.OUT_OF_GPU_MEMORY
    assert "CUDA out of memory. Tried to allocate" in failure.message
    assert "says the planner" in failure.message  # of a model that small nothing is left to save
