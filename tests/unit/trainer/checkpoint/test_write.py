import hashlib
import json
from pathlib import Path

import pytest
import torch

from finetune_trainer.checkpoint import manifest
from finetune_trainer.checkpoint.layout import find_checkpoints
from finetune_trainer.checkpoint.read import read_checkpoint
from finetune_trainer.checkpoint.write import trim, write_adapter, write_checkpoint
from finetune_trainer.contract.progress import CheckpointReport
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from tests.unit.trainer.checkpoint.checkpoints import PROGRESS, SETTINGS, checkpoint_of, no_file_over


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, checkpoint_of(40), keep=2)
    read = read_checkpoint(directory, SETTINGS)
    assert directory.name == "step-40"
    assert (read.progress, read.time) == (PROGRESS, "2026-11-23T08:00:00Z")
    assert torch.equal(read.adapter["a"], torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    assert torch.equal(read.optimizer["a.exp_avg"], torch.ones(2, 3))


def test_the_manifest_has_the_sha256_of_every_other_file(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, checkpoint_of(40), keep=2)
    document = json.loads((directory / "manifest.json").read_text())
    assert (document["version"], document["step"], document["time"]) == (1, 40, "2026-11-23T08:00:00Z")
    others = set(names(directory)) - {"manifest.json"}
    assert others == {"adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "trainer_state.json"}
    assert document["files"] == {
        name: {
            "bytes": (directory / name).stat().st_size,
            "sha256": hashlib.sha256((directory / name).read_bytes()).hexdigest(),
        }
        for name in others
    }


def test_the_operator_is_told_size_digest_and_place_of_a_checkpoint(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "jobs/checkpoints", checkpoint_of(40), keep=2)
    content = (directory / "manifest.json").read_bytes()
    assert manifest.describe(directory, tmp_path) == CheckpointReport(
        step=40,
        time="2026-11-23T08:00:00Z",
        path="jobs/checkpoints/step-40",
        bytes=sum(path.stat().st_size for path in directory.iterdir()),
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )


def test_the_newest_checkpoints_are_kept_by_their_step_not_by_their_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        write_checkpoint(tmp_path, checkpoint_of(step), keep=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-11", "step-10"]
    assert names(tmp_path) == ["step-10", "step-11"]


def test_a_checkpoint_that_was_not_finished_is_none_and_makes_room_for_the_next(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=2)
    (tmp_path / ".step-20.partial").mkdir()
    (tmp_path / ".step-20.partial/optimizer.safetensors").write_bytes(b"half")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-10"]
    trim(tmp_path, keep=2)
    assert names(tmp_path) == ["step-10"]


def test_a_checkpoint_that_the_disk_did_not_keep_removes_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=1)

    def lose(directory: Path) -> None:
        (directory / "optimizer.safetensors").write_bytes(b"what another disk would return")

    # The moment between flushing and reading back, at which only a disk that loses data changes anything.
    monkeypatch.setattr("finetune_trainer.checkpoint.write.forget_cached", lose)
    with pytest.raises(
        TrainerError, match=r"step-20.*reads back damaged: optimizer\.safetensors has 30 bytes"
    ) as error:
        write_checkpoint(tmp_path, checkpoint_of(20), keep=1)
    assert error.value.reason is Reason.CHECKPOINT_UNUSABLE
    assert names(tmp_path) == ["step-10"]


@pytest.mark.parametrize("too_large", [("adapter",), ("optimizer",), ("adapter", "optimizer")], ids=" and ".join)
def test_a_full_disk_leaves_nothing_of_the_new_checkpoint_and_the_old_one_whole(
    tmp_path: Path, too_large: tuple[str, ...]
) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    big = checkpoint_of(20, **{part: {"a": torch.zeros(100_000)} for part in too_large})
    with (
        no_file_over(65536),
        pytest.raises(TrainerError, match=r"step-20: cannot be written: File too large") as caught,
    ):
        write_checkpoint(tmp_path, big, keep=1)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert names(tmp_path) == ["step-10"]
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
    assert names(tmp_path) == ["adapter", "again"]


def test_an_adapter_that_was_put_aside_when_the_node_was_lost_is_not_lost(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {"a": torch.ones(3)}, {"r": 4})
    before = (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter").rename(tmp_path / ".adapter.replaced")
    with no_file_over(65536), pytest.raises(TrainerError):
        write_adapter(tmp_path / "adapter", {"a": torch.zeros(100_000)}, {"r": 4})
    assert (tmp_path / "adapter/adapter_model.safetensors").read_bytes() == before
    assert names(tmp_path) == ["adapter"]


def test_writing_the_adapter_again_replaces_it(tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "adapter", {"a": torch.ones(3)}, {"r": 4})
    second = write_adapter(tmp_path / "adapter", {"a": torch.zeros(3)}, {"r": 4})
    assert first != second
    assert names(tmp_path) == ["adapter"]


def test_the_adapters_digest_is_the_sha256_that_sha256sum_prints(tmp_path: Path) -> None:
    # Of the 100 bytes that safetensors writes for one fp32 zero named a; computed with sha256sum.
    digest = write_adapter(tmp_path / "adapter", {"a": torch.zeros(1)}, {})
    assert digest == "sha256:7efadf73b6ced2fa82e881e0fc9760ee83371297f1782d74e1696ad119fe5318"
