"""Finds the checkpoint to go on from: the newest that is what was written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune_trainer.checkpoint.content import Checkpoint, Progress
from finetune_trainer.checkpoint.directory import discard, put_back_replaced
from finetune_trainer.checkpoint.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OPTIMIZER,
    TRAINER_STATE,
    find_checkpoints,
)
from finetune_trainer.checkpoint.manifest import DamagedError, verify
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors


@dataclass(frozen=True)
class Found:
    """Where a run goes on."""

    directory: Path | None = None  # None: from the first step
    damages: tuple[str, ...] = ()  # a sentence for each newer checkpoint that cannot be used


def find_usable(checkpoints: Path, settings: Mapping[str, Any]) -> Found:
    """Find the newest checkpoint that is whole; take damaged ones that are newer out of the way.

    Raises:
        TrainerError: CHECKPOINT_UNUSABLE when there are checkpoints, but none that is whole: none is touched then.
            INVALID_SPEC when it belongs to a run with other settings.
    """
    with storage_errors(checkpoints):
        put_back_replaced(checkpoints)
        candidates = find_checkpoints(checkpoints)
        damaged: dict[Path, str] = {}
        for directory in candidates:
            try:
                read_checkpoint(directory, settings)
            except DamagedError as error:
                damaged[directory] = str(error)
            else:
                for path in damaged:
                    discard(path)
                return Found(directory, tuple(_tell(path.name, damaged[path], directory.name) for path in damaged))
    if not candidates:
        return Found()
    raise TrainerError(
        Reason.CHECKPOINT_UNUSABLE,
        f"none of the checkpoints in {checkpoints} can be used: "
        f"{'; '.join(f'{path.name}: {what}' for path, what in damaged.items())}. Restore one from a backup and retry "
        "the job from it; or make a new job (without a cluster: remove that directory) to train from the first step",
    )


def read_checkpoint(directory: Path, settings: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint and check its digests.

    Args:
        directory: one of `find_checkpoints`.
        settings: of the run that wants to go on; they have to be those of the run that wrote it.

    Raises:
        DamagedError: it is not what was written.
        TrainerError: INVALID_SPEC, it belongs to a run with other settings.
    """
    manifest = verify(directory)
    try:
        state = json.loads((directory / TRAINER_STATE).read_text(encoding="utf-8"))
        progress = state["progress"] | {"recent_losses": tuple(state["progress"]["recent_losses"])}
        checkpoint = Checkpoint(
            progress=Progress(**progress),
            settings=state["settings"],
            adapter=load_file(directory / ADAPTER_WEIGHTS),
            adapter_config=json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")),
            optimizer=load_file(directory / OPTIMIZER),
            time=manifest.time,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedError(f"it has the right digests, but cannot be read ({error})") from error
    _require_same(settings, checkpoint.settings, directory)
    return checkpoint


def _require_same(settings: Mapping[str, Any], saved: Mapping[str, Any], directory: Path) -> None:
    other = [
        f"{name} was {saved.get(name)!r} and is now {value!r}"
        for name, value in json.loads(json.dumps(dict(settings))).items()
        if saved.get(name) != value
    ]
    if other:
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"{directory} was written by a run with other settings: {'; '.join(other)}. Give the job another name, or "
            f"remove {directory.parent} to start it again",
        )


def _tell(name: str, damage: str, used: str) -> str:
    return f"{name} is damaged: {damage}; {used} was used instead"
