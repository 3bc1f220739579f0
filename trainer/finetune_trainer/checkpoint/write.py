"""Writes step checkpoints, and the adapter that is the run's result."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_trainer.checkpoint.content import Checkpoint, Tensors
from finetune_trainer.checkpoint.directory import discard, remove_leftovers, write_directory
from finetune_trainer.checkpoint.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OPTIMIZER,
    TRAINER_STATE,
    directory_of,
    find_checkpoints,
)
from finetune_trainer.checkpoint.manifest import DamagedError, forget_cached, verify, write_manifest
from finetune_trainer.checkpoint.tensors import save_tensors
from finetune_trainer.contract.termination import Reason
from finetune_trainer.digests import digest_of
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors


def write_checkpoint(checkpoints: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `step-<step>`, read it back, remove all but the newest `keep`, and return the new directory.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE, or CHECKPOINT_UNUSABLE where the disk returns something
            else than what was written; nothing is left of the new checkpoint then, and no older one is removed.
    """

    def write(directory: Path) -> None:
        with ThreadPoolExecutor(1, "optimizer") as thread:
            optimizer = thread.submit(save_tensors, checkpoint.optimizer, directory / OPTIMIZER)
            _write_adapter_files(directory, checkpoint.adapter, checkpoint.adapter_config)
            optimizer.result()
        state = {"progress": asdict(checkpoint.progress), "settings": dict(checkpoint.settings)}
        (directory / TRAINER_STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        write_manifest(directory, checkpoint.progress.step, checkpoint.time)

    directory = directory_of(checkpoints, checkpoint.progress.step)
    write_directory(directory, write, _read_back)
    trim(checkpoints, keep)
    return directory


def trim(checkpoints: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and whatever was left half written or damaged.

    Raises:
        TrainerError: STORAGE_NOT_WRITABLE.
    """
    with storage_errors(checkpoints):
        for old in find_checkpoints(checkpoints)[keep:]:
            discard(old)
        remove_leftovers(checkpoints)


def write_adapter(directory: Path, adapter: Tensors, config: Mapping[str, Any]) -> str:
    """Write an adapter in PEFT layout and return the digest of its weights, `sha256:<hex>`.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE; an adapter that was there before is still there then.
    """
    write_directory(directory, lambda partial: _write_adapter_files(partial, adapter, config), lambda _: None)
    return f"sha256:{digest_of(directory / ADAPTER_WEIGHTS)}"


def _read_back(directory: Path) -> None:
    forget_cached(directory)
    try:
        verify(directory)
    except DamagedError as error:
        raise TrainerError(
            Reason.CHECKPOINT_UNUSABLE,
            f"{directory}: was written and flushed, but reads back damaged: {error}. Check the shared filesystem",
        ) from error


def _write_adapter_files(directory: Path, adapter: Tensors, config: Mapping[str, Any]) -> None:
    save_tensors(adapter, directory / ADAPTER_WEIGHTS)
    (directory / ADAPTER_CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
