"""Training in one process: resumed, broken off, and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from finetune_trainer.contract.job import TrainerJob
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from tests.tiny_run import MODEL_PATH, prepare_tiny_job, train_in_process


def prepare(root: Path, accumulation: int, **groups: Any) -> tuple[TrainerJob, JobPaths]:
    training = {"epochs": 2, "batchSize": 1, "gradientAccumulation": accumulation, "maxSequenceLength": 32}
    # Dropout is on: a resumed run has to drop what the first would have dropped.
    return prepare_tiny_job(root, training=training, lora={"rank": 4, "alpha": 8, "dropout": 0.1}, **groups)


def losses_of(paths: JobPaths) -> list[float]:
    return [json.loads(line)["loss"] for line in (paths.logs / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_ends_with_the_very_adapter_of_one_that_never_stopped(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, checkpoint={"everySteps": 2, "keep": 5})
    first = train_in_process(0, 1, tmp_path / "store-1", [(job, paths, 1)])[0]
    whole = losses_of(paths)
    assert [path.name for path in sorted(paths.checkpoints.iterdir())] == ["step-2", "step-4", "step-6"]

    # What a gang leaves that died after step 5.
    shutil.rmtree(paths.checkpoints / "step-6")
    shutil.rmtree(paths.adapter)
    second = train_in_process(0, 1, tmp_path / "store-2", [(job, paths, 1)])[0]

    assert "resuming at step 4 of 6" in (paths.logs / "training.log").read_text()
    assert losses_of(paths) == whole
    assert second.adapter_digest == first.adapter_digest
    assert (second.steps, second.tokens, second.first_loss) == (first.steps, first.tokens, first.first_loss)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, checkpoint={"everySteps": 2, "keep": 5})
    first = train_in_process(0, 1, tmp_path / "store-1", [(job, paths, 1)])[0]
    whole = losses_of(paths)
    with (paths.checkpoints / "step-6/optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    second = train_in_process(0, 1, tmp_path / "store-2", [(job, paths, 1)])[0]

    told = (paths.logs / "training.log").read_text()
    assert "step-6 is damaged: optimizer.safetensors has 100 bytes instead of " in told
    assert "; step-4 was used instead" in told
    assert "resuming at step 4 of 6" in told
    assert losses_of(paths) == whole
    assert second.adapter_digest == first.adapter_digest


def test_a_run_with_damaged_checkpoints_only_ends_and_says_what_to_do(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, checkpoint={"everySteps": 3, "keep": 5})
    train_in_process(0, 1, tmp_path / "store-1", [(job, paths, 1)])
    for step in (3, 6):
        (paths.checkpoints / f"step-{step}/manifest.json").unlink()
    with pytest.raises(
        TrainerError, match=r"step-6: manifest\.json is missing; step-3: .* to train from the first"
    ) as error:
        train_in_process(0, 1, tmp_path / "store-2", [(job, paths, 1)])
    assert error.value.reason is Reason.CHECKPOINT_UNUSABLE


def test_a_run_makes_room_on_the_disk_before_it_goes_on(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4, checkpoint={"everySteps": 2, "keep": 5})
    train_in_process(0, 1, tmp_path / "store-1", [(job, paths, 1)])
    shutil.copytree(paths.checkpoints / "step-6", paths.checkpoints / ".step-7.partial")
    job, paths = prepare(tmp_path, 4, checkpoint={"everySteps": 2, "keep": 1})
    train_in_process(0, 1, tmp_path / "store-2", [(job, paths, 1)])
    assert [path.name for path in paths.checkpoints.iterdir()] == ["step-6"]


def test_training_changes_every_matrix_of_the_adapter(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4)
    train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])
    adapter = load_file(paths.adapter / "adapter_model.safetensors")
    assert len(adapter) == 2 * 2 * 7  # A and B, layers, linears
    assert all(tensor.abs().max() > 1e-3 for tensor in adapter.values())


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4)
    weights_file = paths.shared / MODEL_PATH / "model.safetensors"
    weights = load_file(weights_file)
    weights["model.norm.weight"][:] = 3e38  # finite, so read without a word; the logits are not
    save_file(weights, weights_file)
    with pytest.raises(TrainerError, match=r"step 1: loss is (nan|inf).*checkpoint is none.*learningRate") as caught:
        train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])
    assert (caught.value.reason, caught.value.step) == (Reason.DIVERGED, 0)
    assert not paths.checkpoints.exists()
    assert not paths.adapter.exists()


def test_a_job_that_was_not_prepared_is_told_so(tmp_path: Path) -> None:
    job, paths = prepare(tmp_path, 4)
    paths.prepared.unlink()
    with pytest.raises(TrainerError, match=r"prepared\.json: cannot be read .*run prepare for this job first"):
        train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])


def test_a_job_prepared_for_another_gang_is_told_so(tmp_path: Path) -> None:
    _, paths = prepare(tmp_path, 4)
    job, _ = prepare(tmp_path / "other", 8)
    with pytest.raises(TrainerError, match=r"prepared for 1 processes and a global batch of 4, but 1 .* batch of 8"):
        train_in_process(0, 1, tmp_path / "store", [(job, paths, 1)])
