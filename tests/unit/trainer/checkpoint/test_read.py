from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_trainer.checkpoint.layout import find_checkpoints
from finetune_trainer.checkpoint.manifest import DamagedError, write_manifest
from finetune_trainer.checkpoint.read import Found, find_usable, read_checkpoint
from finetune_trainer.checkpoint.write import trim, write_checkpoint
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from tests.unit.trainer.checkpoint.checkpoints import SETTINGS, checkpoint_of


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def write_with_right_digests(path: Path, text: str) -> None:
    path.write_text(text)
    (path.parent / "manifest.json").unlink()
    write_manifest(path.parent, 10, "2026-11-23T08:00:00Z")


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a file is missing": (lambda d: (d / "optimizer.safetensors").unlink(), r"^optimizer\.safetensors is missing$"),
    "a file is cut": (
        lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x10"),
        r"^adapter_model\.safetensors has 1 bytes instead of \d+$",
    ),
    "a bit is flipped": (
        lambda d: flip_a_bit(d / "optimizer.safetensors"),
        r"^the SHA-256 digest of optimizer\.safetensors is not that of manifest\.json$",
    ),
    "the manifest is missing": (lambda d: (d / "manifest.json").unlink(), r"^manifest\.json is missing$"),
    "the manifest is half written": (
        lambda d: (d / "manifest.json").write_text('{"step": 1'),
        r"^manifest\.json cannot be read: Invalid JSON",
    ),
    "the manifest is no manifest": (
        lambda d: (d / "manifest.json").write_text("{}"),
        r"^manifest\.json cannot be read: Field required",
    ),
    "a file is a directory": (
        lambda d: ((d / "adapter_config.json").unlink(), (d / "adapter_config.json").mkdir()),
        r"adapter_config\.json",
    ),
    "the state is no JSON": (
        lambda d: write_with_right_digests(d / "trainer_state.json", "{"),
        "^it has the right digests, but cannot be read",
    ),
    "the state lacks a field": (
        lambda d: write_with_right_digests(d / "trainer_state.json", "{}"),
        "^it has the right digests, but cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_not_read(tmp_path: Path, damage: Damage, message: str) -> None:
    directory = write_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    damage(directory)
    with pytest.raises(DamagedError, match=message):
        read_checkpoint(directory, SETTINGS)


@pytest.mark.parametrize(("damage", "_message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_the_one_before_a_damaged_checkpoint_is_used_and_that_is_told(
    tmp_path: Path, damage: Damage, _message: str
) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, checkpoint_of(step), keep=3)
    damage(tmp_path / "step-20")
    found = find_usable(tmp_path, SETTINGS)
    assert found.directory == tmp_path / "step-10"
    (told,) = found.damages
    assert told.startswith("step-20 is damaged: ")
    assert told.endswith("; step-10 was used instead")


def test_the_newest_checkpoint_is_used_when_it_is_whole(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, checkpoint_of(step), keep=3)
    (tmp_path / "step-10/manifest.json").unlink()
    assert find_usable(tmp_path, SETTINGS) == Found(tmp_path / "step-20")


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, checkpoint_of(step), keep=3)
    for step in (20, 30):
        (tmp_path / f"step-{step}/manifest.json").unlink()
    assert len(find_usable(tmp_path, SETTINGS).damages) == 2
    write_checkpoint(tmp_path, checkpoint_of(15), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-15"]


def test_a_run_without_any_checkpoint_begins_at_its_first_step(tmp_path: Path) -> None:
    assert find_usable(tmp_path / "checkpoints", SETTINGS) == Found(None)


def test_checkpoints_of_which_none_is_whole_end_the_run_untouched(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, checkpoint_of(step), keep=3)
        (tmp_path / f"step-{step}/optimizer.safetensors").unlink()
    with pytest.raises(TrainerError) as caught:
        find_usable(tmp_path, SETTINGS)
    assert caught.value.reason is Reason.CHECKPOINT_UNUSABLE
    assert caught.value.message == (
        f"none of the checkpoints in {tmp_path} can be used: step-20: optimizer.safetensors is missing; "
        "step-10: optimizer.safetensors is missing. Restore one from a backup and retry the job from it; or make a new "
        "job (without a cluster: remove that directory) to train from the first step"
    )
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-20", "step-10"]


def test_a_checkpoint_that_was_put_aside_when_the_node_was_lost_is_found(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=3)
    (tmp_path / "step-10").rename(tmp_path / ".step-10.replaced")
    assert find_usable(tmp_path, SETTINGS) == Found(tmp_path / "step-10")
    trim(tmp_path, keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


def test_a_run_with_other_settings_does_not_go_on_from_it_and_is_told_which_differ(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint_of(10), keep=1)
    with pytest.raises(TrainerError, match=r"lora\.rank was 4 and is now 8\. Give the job another name") as caught:
        find_usable(tmp_path, SETTINGS | {"lora.rank": 8})
    assert caught.value.reason is Reason.INVALID_SPEC
