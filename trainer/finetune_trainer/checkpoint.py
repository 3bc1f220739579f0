"""What a run leaves on the shared filesystem: step checkpoints to go on from, and the adapter as its result.

    checkpoints/step-<step>/    adapter_model.safetensors  adapter_config.json    loads with PEFT like the result
                                optimizer.safetensors  trainer_state.json         what it takes to go on
    adapter/                    adapter_model.safetensors  adapter_config.json

A directory is written under a name of its own, flushed to the disk and then renamed, so one that has its final name
is complete. Every process holds the whole adapter, so rank 0 writes alone and any number of processes can read.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import flush, storage_errors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
TRAINER_STATE = "trainer_state.json"
STEP_PREFIX = "step-"
OPTIMIZER_MOMENTS = ("exp_avg", "exp_avg_sq", "step")

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a run has come; what its report is made of."""

    step: int = 0  # steps done
    tokens: int = 0
    seconds: float = 0.0  # spent in steps, over all attempts
    first_loss: float = float("nan")
    recent_losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A step checkpoint in memory."""

    progress: Progress
    settings: Mapping[str, Any]  # what must be equal for a run to go on from here
    adapter: Tensors  # under PEFT's names
    adapter_config: Mapping[str, Any]
    optimizer: Tensors


def write_checkpoint(checkpoints: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `step-<step>`, remove all but the newest `keep`, and return the new directory.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE; nothing is left of the new checkpoint then.
    """

    def write(directory: Path) -> None:
        _write_adapter_files(directory, checkpoint.adapter, checkpoint.adapter_config)
        (directory / OPTIMIZER).write_bytes(save(checkpoint.optimizer))
        state = {"progress": asdict(checkpoint.progress), "settings": dict(checkpoint.settings)}
        (directory / TRAINER_STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    directory = checkpoints / f"{STEP_PREFIX}{checkpoint.progress.step}"
    _write_directory(directory, write)
    with storage_errors(checkpoints):
        for old in find_checkpoints(checkpoints)[keep:]:
            shutil.rmtree(old)
    return directory


def write_adapter(directory: Path, adapter: Tensors, config: Mapping[str, Any]) -> str:
    """Write an adapter in PEFT layout and return the digest of its weights, `sha256:<hex>`.

    Raises:
        TrainerError: STORAGE_FULL or STORAGE_NOT_WRITABLE; an adapter that was there before is still there then.
    """
    _write_directory(directory, lambda partial: _write_adapter_files(partial, adapter, config))
    with (directory / ADAPTER_WEIGHTS).open("rb") as weights:
        return f"sha256:{hashlib.file_digest(weights, 'sha256').hexdigest()}"


def find_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints of a job, the newest first."""
    steps = {
        int(path.name.removeprefix(STEP_PREFIX)): path
        for path in checkpoints.glob(f"{STEP_PREFIX}*")
        if path.name.removeprefix(STEP_PREFIX).isdecimal()
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def read_checkpoint(directory: Path, settings: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint that `write_checkpoint` wrote.

    Args:
        directory: one of `find_checkpoints`.
        settings: of the run that wants to go on; they have to be those of the run that wrote it.

    Raises:
        TrainerError: it cannot be read, or belongs to a run with other settings.
    """
    try:
        state = json.loads((directory / TRAINER_STATE).read_text(encoding="utf-8"))
        progress = state["progress"] | {"recent_losses": tuple(state["progress"]["recent_losses"])}
        checkpoint = Checkpoint(
            progress=Progress(**progress),
            settings=state["settings"],
            adapter=load_file(directory / ADAPTER_WEIGHTS),
            adapter_config=json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")),
            optimizer=load_file(directory / OPTIMIZER),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainerError(
            Reason.ERROR, f"{directory}: is no readable checkpoint ({error}); remove it to go on without it"
        ) from error
    other = [
        f"{name} was {checkpoint.settings.get(name)!r} and is now {value!r}"
        for name, value in json.loads(json.dumps(dict(settings))).items()
        if checkpoint.settings.get(name) != value
    ]
    if other:
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"{directory} was written by a run with other settings: {'; '.join(other)}. Give the job another name, or "
            f"remove {directory.parent} to start it again",
        )
    return checkpoint


def optimizer_tensors(optimizer: torch.optim.Optimizer, adapter: Mapping[str, nn.Parameter]) -> Tensors:
    """Return the optimizer's moments under the names of the parameters."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment].detach().cpu().contiguous()
        for name, parameter in adapter.items()
        for moment in OPTIMIZER_MOMENTS
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, adapter: Mapping[str, nn.Parameter], tensors: Tensors) -> None:
    """Put the moments that `optimizer_tensors` returned back.

    Raises:
        KeyError: one is missing.
    """
    for name, parameter in adapter.items():
        # NB: AdamW counts its steps in a tensor that stays on the CPU unless the optimizer is capturable or fused.
        optimizer.state[parameter] = {
            moment: tensors[f"{name}.{moment}"].to("cpu" if moment == "step" else parameter.device)
            for moment in OPTIMIZER_MOMENTS
        }


def _write_adapter_files(directory: Path, adapter: Tensors, config: Mapping[str, Any]) -> None:
    # The bytes are made here, not by safetensors' save_file: that reports a full disk as an error without a number.
    (directory / ADAPTER_WEIGHTS).write_bytes(save(adapter, metadata={"format": "pt"}))
    (directory / ADAPTER_CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")


def _write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    partial = directory.with_name(f".{directory.name}.partial")
    replaced = directory.with_name(f".{directory.name}.replaced")
    with storage_errors(directory):
        _restore(directory, replaced)  # somebody may have been killed between the two renames
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            for path in [*partial.iterdir(), partial]:
                flush(path)
            if directory.exists():
                directory.rename(replaced)
            partial.rename(directory)
            flush(directory.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _restore(directory, replaced)


def _restore(directory: Path, replaced: Path) -> None:
    """Give a directory that was put aside its name back, unless another has it by now."""
    if replaced.exists() and not directory.exists():
        replaced.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)
