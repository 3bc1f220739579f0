"""Where a checkpoint's parts lie."""

from pathlib import Path

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.safetensors"
TRAINER_STATE = "trainer_state.json"
_STEP_PREFIX = "step-"


def directory_of(checkpoints: Path, step: int) -> Path:
    """Return the directory of a step's checkpoint."""
    return checkpoints / f"{_STEP_PREFIX}{step}"


def find_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the checkpoints of a job that were finished, the newest first."""
    steps = {
        int(path.name.removeprefix(_STEP_PREFIX)): path
        for path in checkpoints.glob(f"{_STEP_PREFIX}*")
        if path.name.removeprefix(_STEP_PREFIX).isdecimal()
    }
    return [steps[step] for step in sorted(steps, reverse=True)]
