"""Training in one process and in two, with every sharding, resumed and broken off."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from tests.tiny_run import MODEL_PATH, prepare_tiny_job, train_in_process

# Dropout and packing are on: both have to come out the same wherever a sequence is computed.
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
# Sharding and processes of a node, for a gang of two processes.
GANGS = {
    "replicate": ("replicate", 2),
    "full": ("full", 2),
    "hybrid on one node": ("hybrid", 2),
    "hybrid on two nodes": ("hybrid", 1),
}


@dataclass(frozen=True)
class Finished:
    """What a run left behind."""

    losses: list[float]
    adapter: dict[str, torch.Tensor]


def read_run(paths: JobPaths) -> Finished:
    lines = (paths.logs / "metrics.jsonl").read_text().splitlines()
    return Finished(
        [json.loads(line)["loss"] for line in lines], load_file(paths.adapter / "adapter_model.safetensors")
    )


def prepare(root: Path, accumulation: int, compute: dict[str, Any], **groups: Any) -> tuple[TrainerJob, JobPaths]:
    training = {
        "epochs": 2,
        "batchSize": 1,
        "gradientAccumulation": accumulation,
        "maxSequenceLength": 32,
        "optimizer": {"learningRate": 0.01},
        "schedule": {"warmupSteps": 1},
    }
    return prepare_tiny_job(root, training=training, lora=LORA, compute={"device": "cpu"} | compute, **groups)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of one process."""
    root = tmp_path_factory.mktemp("alone")
    job, paths = prepare(root, 8, {})
    train_in_process(0, 1, root / "store", [(job, paths, 1)])
    return read_run(paths)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The same run in two processes, once for each sharding."""
    runs = {}
    for name, (sharding, per_node) in GANGS.items():
        root = tmp_path_factory.mktemp("together")
        compute = {"sharding": sharding, "nodes": 2 // per_node, "processesPerNode": per_node}
        runs[name] = (*prepare(root, 4, compute), per_node)
    store = tmp_path_factory.mktemp("store") / "store"
    torch.multiprocessing.spawn(train_in_process, (2, store, list(runs.values())), nprocs=2)
    return {name: read_run(paths) for name, (_, paths, _) in runs.items()}


@pytest.mark.parametrize("gang", GANGS)
def test_two_processes_have_the_loss_curve_of_one(alone: Finished, together: dict[str, Finished], gang: str) -> None:
    assert len(alone.losses) == 4
    assert together[gang].losses == pytest.approx(alone.losses, rel=1e-6)


@pytest.mark.parametrize("gang", GANGS)
def test_two_processes_train_the_adapter_of_one(alone: Finished, together: dict[str, Finished], gang: str) -> None:
    adapter = together[gang].adapter
    assert adapter.keys() == alone.adapter.keys()
    for name, expected in alone.adapter.items():
        # AdamW's first steps have the learning rate as their size whatever the gradient, also where it is almost zero.
        torch.testing.assert_close(adapter[name], expected, rtol=1e-3, atol=1e-4)


def test_training_changes_every_matrix_of_the_adapter(alone: Finished) -> None:
    assert all(tensor.abs().max() > 1e-3 for name, tensor in alone.adapter.items() if "lora_B" in name)


def test_a_resumed_run_ends_with_the_very_adapter_of_one_that_never_stopped(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, {}, checkpoint={"everySteps": 2, "keep": 5})
    first = train_in_process(0, 1, tmp_path / "store-1", [(job, paths, 1)])[0]
    whole = read_run(paths)
    assert [path.name for path in sorted(paths.checkpoints.iterdir())] == ["step-2", "step-4", "step-6"]

    # What a gang leaves that died after step 5.
    shutil.rmtree(paths.checkpoints / "step-6")
    shutil.rmtree(paths.adapter)
    second = train_in_process(0, 1, tmp_path / "store-2", [(job, paths, 1)])[0]
    resumed = read_run(paths)

    assert "resuming at step 4 of 6" in (paths.logs / "training.log").read_text()
    assert resumed.losses == whole.losses
    assert second.adapter_digest == first.adapter_digest
    assert (second.steps, second.tokens, second.first_loss) == (first.steps, first.tokens, first.first_loss)


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, {})
    weights_file = paths.shared / MODEL_PATH / "model.safetensors"
    weights = load_file(weights_file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, weights_file)
    with pytest.raises(TrainerError, match=r"step 1: loss is nan.*checkpoint is none.*learningRate") as caught:
        train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])
    assert (caught.value.reason, caught.value.step) == (Reason.DIVERGED, 0)
    assert not paths.checkpoints.exists()
    assert not paths.adapter.exists()


def test_a_job_that_was_not_prepared_is_told_so(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, {})
    paths.prepared.unlink()
    with pytest.raises(TrainerError, match=r"prepared\.json: cannot be read .*run prepare for this job first"):
        train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])


def test_a_job_prepared_for_another_gang_is_told_so(tmp_path: Path) -> None:
    _, paths = prepare(tmp_path, 4, {})
    job, _ = prepare(tmp_path / "other", 8, {})
    with pytest.raises(TrainerError, match=r"prepared for 1 processes and a global batch of 4, but 1 .* batch of 8"):
        train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])
