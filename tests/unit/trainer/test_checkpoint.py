import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.checkpoint import (
    Checkpoint,
    Progress,
    find_checkpoints,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    write_adapter,
    write_checkpoint,
)
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError

SETTINGS = {"lora.rank": 4, "lora.targets": ["q_proj"], "training.seed": 0}


def checkpoint_of(step: int, **changes: Any) -> Checkpoint:
    content: dict[str, Any] = {
        "progress": Progress(step, tokens=1000, seconds=2.5, first_loss=3.0, recent_losses=(3.0, 2.5)),
        "settings": SETTINGS,
        "adapter": {"a": torch.arange(6.0).reshape(2, 3)},
        "adapter_config": {"r": 4},
        "optimizer": {"a.exp_avg": torch.ones(2, 3)},
    }
    return Checkpoint(**(content | changes))


@contextmanager
def no_file_over(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to write more, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, checkpoint_of(40), keep=2)
    read = read_checkpoint(directory, SETTINGS)
    assert directory.name == "step-40"
    assert read.progress == Progress(40, tokens=1000, seconds=2.5, first_loss=3.0, recent_losses=(3.0, 2.5))
    assert torch.equal(read.adapter["a"], torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    assert torch.equal(read.optimizer["a.exp_avg"], torch.ones(2, 3))


def test_the_newest_checkpoints_are_kept_by_their_step_not_by_their_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        write_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-11", "step-10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11"]


def test_a_checkpoint_that_was_not_finished_is_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=2)
    (tmp_path / ".step-20.partial").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-10"]


def test_a_full_disk_leaves_nothing_of_the_new_checkpoint_and_the_old_one_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    big = checkpoint_of(20, optimizer={"a.exp_avg": torch.zeros(100_000)})
    with (
        no_file_over(65536),
        pytest.raises(TrainerError, match=r"step-20: cannot be written: File too large") as caught,
    ):
        write_checkpoint(tmp_path, big, keep=1)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    read_checkpoint(tmp_path / "step-10", SETTINGS)


def test_a_full_disk_leaves_the_adapter_of_before(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    digest = write_adapter(adapter, {"a": torch.ones(3)}, {"r": 4})
    with no_file_over(65536), pytest.raises(TrainerError):
        write_adapter(adapter, {"a": torch.zeros(100_000)}, {"r": 4})
    assert write_adapter(tmp_path / "again", {"a": torch.ones(3)}, {"r": 4}) == digest
    assert (adapter / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "again" / "adapter_model.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "again"]


def test_an_adapter_that_was_put_aside_when_the_node_was_lost_is_not_lost(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {"a": torch.ones(3)}, {"r": 4})
    before = (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter").rename(tmp_path / ".adapter.replaced")
    with no_file_over(65536), pytest.raises(TrainerError):
        write_adapter(tmp_path / "adapter", {"a": torch.zeros(100_000)}, {"r": 4})
    assert (tmp_path / "adapter/adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_writing_the_adapter_again_replaces_it(tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "adapter", {"a": torch.ones(3)}, {"r": 4})
    second = write_adapter(tmp_path / "adapter", {"a": torch.zeros(3)}, {"r": 4})
    assert first != second
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_adapters_digest_is_the_sha256_that_sha256sum_prints(tmp_path: Path) -> None:
    # Of the 100 bytes that safetensors writes for one fp32 zero named a; computed with sha256sum.
    digest = write_adapter(tmp_path / "adapter", {"a": torch.zeros(1)}, {})
    assert digest == "sha256:7efadf73b6ced2fa82e881e0fc9760ee83371297f1782d74e1696ad119fe5318"


def test_a_run_with_other_settings_does_not_go_on_from_it_and_is_told_which_differ(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    with pytest.raises(TrainerError, match=r"lora\.rank was 4 and is now 8\. Give the job another name") as caught:
        read_checkpoint(directory, SETTINGS | {"lora.rank": 8})
    assert caught.value.reason is Reason.INVALID_SPEC


DAMAGES = {
    "a file is missing": lambda directory: (directory / "optimizer.safetensors").unlink(),
    "weights are cut": lambda directory: (directory / "adapter_model.safetensors").write_bytes(b"\x10"),
    "the state is no JSON": lambda directory: (directory / "trainer_state.json").write_text("{"),
    "the state lacks a field": lambda directory: (directory / "trainer_state.json").write_text(json.dumps({})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Any) -> None:
    directory = write_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    damage(directory)
    with pytest.raises(TrainerError, match="step-10: is no readable checkpoint"):
        read_checkpoint(directory, SETTINGS)


def test_an_optimizer_goes_on_from_its_tensors_as_if_it_had_never_stopped() -> None:
    def run(steps: range, weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        for step in steps:
            weight.grad = torch.full_like(weight, 0.1 * (step + 1))
            optimizer.step()

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    run(range(3), weight, optimizer)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, {"w": weight}).items()}
    resumed = torch.nn.Parameter(weight.detach().clone())
    run(range(3, 6), weight, optimizer)

    other = torch.optim.AdamW([resumed], lr=0.1)
    restore_optimizer(other, {"w": resumed}, tensors)
    run(range(3, 6), resumed, other)
    assert torch.equal(resumed, weight)
